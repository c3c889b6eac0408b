"""mlx-lm: the twin is what it loads, tokens and times are counted right, and rows are saved."""

import argparse
import csv
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm as library
import pytest
from mlx.utils import tree_flatten

import mlx_test_llama2 as script
import utils
from harness.frameworks import mlx, mlx_lm
from harness.questions import QUESTIONS, SAMPLING
from harness.twins.gguf import ARCHITECTURES, Architecture
from harness.twins.mlx_llama import config, ensure_twin, tensors, weights_size
from reporting.tables import load_results

TINY = Architecture("tiny", 2, 64, 128, 4, 2, 700, 512, rms_epsilon=1e-5)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins")
    return ensure_twin("Tiny-4bit", TINY, f"[INST] {QUESTIONS[0]} [/INST]", folder)


@pytest.fixture(scope="module")
def loaded(twin):
    mlx.choose_device("cpu")
    return mlx_lm.load(twin)


def answer(loaded, count=12, seed=1, **kwargs):
    model, tokenizer, _ = loaded
    prompt = mlx_lm.prompt_tokens(tokenizer, QUESTIONS[0])
    return mlx_lm.generate(model, tokenizer, prompt, count, seed, 0.8, **kwargs)


# The twin


def test_twin_is_a_quantized_llama_as_mlx_lm_converts_one(loaded, twin):
    from mlx_lm.models.llama import Model, ModelArgs
    from mlx_lm.utils import quantize_model

    plain = Model(ModelArgs.from_dict(config(TINY)))
    plain.set_dtype(mx.float16)
    converted, _ = quantize_model(plain, {}, 64, 4)
    expected = {n: (w.shape, w.dtype) for n, w in tree_flatten(converted.parameters())}
    stored = mx.load(str(twin / "model.safetensors"))
    assert {name: (w.shape, w.dtype) for name, w in stored.items()} == expected
    assert sum(weight.nbytes for weight in stored.values()) == weights_size(TINY)


def test_twins_of_real_models_have_their_size():
    shapes = tensors(ARCHITECTURES["llama-2-7b"])
    parameters = sum(rows[0] * n if rows else n for *rows, n in shapes.values())
    assert parameters == 6_738_415_616  # as published for Llama 2 7B
    assert weights_size(ARCHITECTURES["llama-2-7b"]) == pytest.approx(3.79e9, rel=0.01)


def test_logits_of_random_weights_are_of_a_usual_size(loaded):
    model, _, _ = loaded
    logits = model(mx.array([[1, 300, 301, 302]]))
    assert mx.isfinite(logits).all() and 0.3 < mx.std(logits).item() < 3


def test_a_question_takes_about_a_token_a_word(loaded):
    _, tokenizer, _ = loaded
    prompt = mlx_lm.prompt_tokens(tokenizer, QUESTIONS[0])
    assert prompt[0] == tokenizer.bos_token_id and prompt.count(tokenizer.bos_token_id) == 1
    assert len(QUESTIONS[0].split()) < len(prompt) < 2.5 * len(QUESTIONS[0].split())
    assert QUESTIONS[0] in tokenizer.decode(prompt)


PARTS = (
    "{% for m in messages %}{{ bos_token }}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% endfor %}"
)


def with_template(twin, folder, template: bytes):
    """The twin with a chat template."""
    shutil.copytree(twin, folder / "model")
    (folder / "model" / "chat_template.jinja").write_bytes(template)
    return folder / "model"


def test_template_that_wants_typed_parts_has_the_question(twin, tmp_path):
    _, tokenizer, _ = mlx_lm.load(with_template(twin, tmp_path, PARTS.encode()))
    prompt = mlx_lm.prompt_tokens(tokenizer, QUESTIONS[0])
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert QUESTIONS[0] in tokenizer.decode(prompt)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ bos_token }}", "leaves out the question"),
        ("{{ raise_exception('no, never') }}", "refuses it: no, never"),
        ("{% if %}", "refuses it"),
    ],
)
def test_prompt_without_the_question_is_refused(template, problem, twin, tmp_path):
    _, tokenizer, _ = mlx_lm.load(with_template(twin, tmp_path, template.encode()))
    with pytest.raises(utils.UserError) as caught:
        mlx_lm.prompt_tokens(tokenizer, QUESTIONS[0])
    (line,) = str(caught.value).splitlines()
    assert str(tmp_path) in line and problem in line


def test_template_that_is_no_text_is_one_line(twin, tmp_path):
    folder = with_template(twin, tmp_path, b"\xff{{ messages[0].content }}")
    with pytest.raises(utils.UserError) as caught:
        mlx_lm.load(folder)
    (line,) = str(caught.value).splitlines()
    assert str(folder) in line and "can't decode" in line


# One generation


def test_tokens_are_those_that_mlx_lm_generates(loaded):
    model, tokenizer, _ = loaded
    row = answer(loaded)
    assert row["answer_token_len"] == 12  # random weights do not end a sequence
    assert row["prompt_token_len"] == len(mlx_lm.prompt_tokens(tokenizer, QUESTIONS[0]))
    mx.random.seed(1)
    sampler = library.sample_utils.make_sampler(0.8, **SAMPLING)
    prompt = mlx_lm.prompt_tokens(tokenizer, QUESTIONS[0])
    text = library.generate(model, tokenizer, prompt, max_tokens=12, sampler=sampler)
    assert row["answer"] == text and row["answer_char_len"] == len(text)


def test_same_seed_same_answer(loaded):
    assert answer(loaded)["answer"] == answer(loaded)["answer"] != answer(loaded, seed=2)["answer"]


def with_clock(monkeypatch, seconds):
    """Let the clock show these times one after another."""
    monkeypatch.setattr(mlx_lm.time, "perf_counter", lambda: next(seconds))


def test_prompt_and_generation_are_timed_apart(loaded, monkeypatch):
    # Start, the first token after 2 s, then one every half second. mlx-lm reads the clock too.
    times = iter([0.0, *(2 + 0.5 * i for i in range(12))])
    counted = list(mlx_lm.responses(loaded[0], loaded[1], [1, 300], 12))
    monkeypatch.setattr(mlx_lm, "responses", lambda *_: iter(counted))
    with_clock(monkeypatch, times)
    row = answer(loaded)
    assert row["time_to_first_token"] == 2 and row["total_time"] == 7.5
    assert row["tokens_per_second"] == 2  # 11 tokens in 5.5 s
    assert row["prompt_tokens_per_second"] == row["prompt_token_len"] / 2


def test_figures_evaluate_and_generate_what_they_say(loaded, monkeypatch):
    model, tokenizer, found = loaded
    row = mlx_lm.bench_prompt(model, tokenizer, found["vocab_size"], 64)
    assert row["prompt_tokens_per_second"] == pytest.approx(64 / row["total_time"])
    monkeypatch.setattr(
        mlx_lm, "timed", lambda *arguments: [9.0, *range(10, 10 + arguments[3] - 1)]
    )
    row = mlx_lm.bench_generation(model, tokenizer, found["vocab_size"], 32)
    assert (row["answer_token_len"], row["tokens_per_second"]) == (32, 1)


def test_streaming_shows_the_answer(loaded):
    pieces = []
    assert answer(loaded, show=pieces.append)["answer"] == "".join(pieces)


def test_too_long_an_answer_is_bad_usage(loaded):
    with pytest.raises(utils.UsageError, match="--max_tokens=500: .* context is 512"):
        mlx_lm.require_context([[1] * 20], loaded[2], 500)


# Files, and the whole script


def test_a_folder_that_holds_no_model_is_one_line(tmp_path):
    with pytest.raises(utils.UserError, match="cannot load it"):
        mlx_lm.load(tmp_path)


def test_what_is_measured_is_found_or_named(tmp_path, twin):
    options = argparse.Namespace(model=str(twin), data="auto", data_dir=tmp_path)
    assert script.find_model(options) == (twin.name, twin)
    options.model = str(tmp_path / "nowhere")
    with pytest.raises(utils.UsageError, match="--model=.*neither a folder nor a name"):
        script.find_model(options)
    options.data = "synthetic"
    with pytest.raises(utils.UsageError, match="--model: --data=synthetic"):
        script.find_model(options)


def test_the_default_model_comes_from_the_hub(hub, tmp_path, twin, monkeypatch):
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    files = {name: (twin / name).read_bytes() for name in names}
    hub.add("model", script.DEFAULT_MODEL, files | {"notes.txt": b"not wanted"})
    code = (
        "import argparse, pathlib, sys, mlx_test_llama2 as script\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "named = dict(model=script.DEFAULT_MODEL, data='auto', data_dir=folder)\n"
        "print(*script.find_model(argparse.Namespace(**named)), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True,
        cwd=Path(script.__file__).parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, path = done.stdout.splitlines()[-2:]
    assert name == script.EXPERIMENT.model
    path = Path(path)
    assert sorted(file.name for file in path.iterdir()) == sorted(names)
    mlx_lm.load(path)


def test_without_a_gpu_it_says_what_to_do_before_anything_is_written(tmp_path):
    if mx.is_available(mx.gpu):
        pytest.skip("this machine has a GPU that MLX uses")
    command = [sys.executable, script.__file__, "--data=synthetic", f"--data_dir={tmp_path / 'd'}",
               f"--results_dir={tmp_path / 'results'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "MLX sees no GPU here" in line and "--device=cpu" in line
    assert not (tmp_path / "d").exists()


def test_script_as_a_user_runs_it(tmp_path, twin):
    done = subprocess.run(
        [sys.executable, script.__file__, f"--model={twin}", "--num_questions=2", "--max_tokens=5",
         "--device=cpu", "--num_times_per_question=2", "--bench_repetitions=1",
         "--machine_name=here", f"--results_dir={tmp_path}"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "results_mlx_generation" / "here_Tiny-4bit_results.csv").open() as file:
        rows = list(csv.DictReader(file))
    asked = [*itertools.product(QUESTIONS[:2], "12")]
    assert [(r["question"], r["question_iter"]) for r in rows] == [
        ("pp512", "1"), ("tg128", "1"), *asked
    ]  # fmt: skip
    assert {row["status"] for row in rows} == {"ok"} and {r["data"] for r in rows} == {"synthetic"}
    assert all(float(row["tokens_per_second"]) > 0 for row in rows[1:])
    assert [row["answer_token_len"] for row in rows[2:]] == ["5"] * 4
    assert rows[0]["quantization"] == "4 bits, groups of 64"
    found = load_results(tmp_path)
    assert not found.problems and len(found.generations) == 6
