"""The LLM script as a user runs it, with a tiny model in the true file format."""

import csv
import itertools
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from signals import hear_signals

import harness.twins.gguf
import llama2_test as script
import utils
from harness import gguf_file
from harness.frameworks import llama, llama_text
from harness.llm.experiment import COLUMNS
from harness.questions import ALL_IN_ONE, LLAMA2_PROMPT, QUESTIONS
from harness.windows import mean_and_interval

ROOT = Path(__file__).parent.parent
TINY = harness.twins.gguf.Architecture("tiny.Q4_0", 2, 256, 512, 4, 2, 32000, 2048, 1e-6)
QUICK = ("--num_questions=1", "--num_times_per_question=2", "--max_tokens=8", "--n_threads=1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return harness.twins.gguf.ensure_twin(TINY, ALL_IN_ONE, folder)


@pytest.fixture(scope="module")
def context(model):
    options = Namespace(model_path=model, verbose=False, device="auto", n_gpu_layers=-1,
                        n_threads=1, flash_attn="auto", split_mode="layer",
                        tensor_split="")  # fmt: skip
    with llama.open_context(llama.load(options), options, n_ctx=1024) as context:
        yield context


def command(tmp_path, *flags):
    results = f"--results_dir={tmp_path / 'results'}"
    return [sys.executable, str(ROOT / "llama2_test.py"), results, *map(str, flags)]


def run(tmp_path, *flags):
    return subprocess.run(command(tmp_path, *flags), capture_output=True, text=True, cwd=tmp_path)


def rows(tmp_path):
    (path,) = (tmp_path / "results").rglob("*_results.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def one_line(done):
    """The error message of a run, which must be all that stderr holds but for the usage."""
    *usage, message = done.stderr.splitlines()
    assert all(line.startswith(("usage:", " ")) for line in usage), done.stderr
    return message


def test_rows_of_a_run(model, tmp_path):
    done = run(tmp_path, f"--path_to_gguf_model={model}", *QUICK, "--bench_repetitions=2")
    assert done.returncode == 0, done.stderr
    assert "llama_" not in done.stderr  # llama.cpp's own log
    for figure in ("pp512", "tg128", "answers"):
        assert re.search(rf"^{figure} .*\d \+/- \S+ tokens/s \(2 rows\)$", done.stdout, re.M)
    saved = rows(tmp_path)
    assert tuple(saved[0]) == COLUMNS
    assert [(row["question"], row["question_iter"]) for row in saved] == [
        ("pp512", "1"), ("pp512", "2"), ("tg128", "1"), ("tg128", "2"),
        (QUESTIONS[0], "1"), (QUESTIONS[0], "2"),
    ]  # fmt: skip
    assert {row["status"] for row in saved} == {"ok"}
    assert {(row["data"], row["model"], row["quantization"]) for row in saved} == {
        ("synthetic", "tiny.Q4_0", "Q4_0")
    }
    prompt, _, generation, _, first, second = saved
    assert (prompt["prompt_token_len"], prompt["tokens_per_second"]) == ("512", "")
    assert (generation["answer_token_len"], generation["prompt_tokens_per_second"]) == ("128", "")
    # The same seed, so the same answer; and a prompt asked before is evaluated again.
    assert first["answer"] == second["answer"] and len(first["answer"]) > 8
    assert first["answer_token_len"] == second["answer_token_len"] == "8"
    assert first["prompt_token_len"] == second["prompt_token_len"]
    assert {row["flash_attn_used"] for row in saved} == {"on"}
    for row in (first, second):
        total, until_first = float(row["total_time"]), float(row["time_to_first_token"])
        assert 0 < until_first < total
        characters = int(row["answer_char_len"])
        assert float(row["chars_per_second"]) == pytest.approx(characters / total, rel=0.001)
        # Counters and wall clock agree on the time of the prompt and of the other 7 tokens.
        counted = int(row["prompt_token_len"]) / float(row["prompt_tokens_per_second"])
        counted += 7 / float(row["tokens_per_second"])
        outside = 100 * (1 - counted / total)
        assert float(row["outside_model_percent"]) == pytest.approx(outside, abs=0.1)
        assert 0 <= outside < 100


def test_max_seconds_ends_after_a_row_that_is_kept(model, tmp_path):
    questions = tmp_path / "questions.txt"
    questions.write_text("What is a fjord?\nWhy is it deep?\n")
    done = run(tmp_path, f"--model={model}", "--bench_repetitions=0", "--max_tokens=4",
               f"--questions_file={questions}", "--max_seconds=0.001", "--n_threads=1")  # fmt: skip
    assert done.returncode == 0 and "--max_seconds=0.001 are over" in done.stdout
    (row,) = rows(tmp_path)
    assert (row["question"], row["questions_file"]) == ("What is a fjord?", "questions.txt")


def test_torn_file_is_named_and_left_alone(model, tmp_path):
    path = tmp_path / "results/results_llama2/M_tiny.Q4_0_results.csv"
    path.parent.mkdir(parents=True)
    path.write_text("question,answer\npp512,")
    done = run(tmp_path, f"--path_to_gguf_model={model}", *QUICK, "--machine_name=M")
    assert done.returncode == 1 and str(path) in one_line(done)
    assert path.read_text() == "question,answer\npp512,"


def test_name_of_the_results_has_no_slash_whatever_path_was_given(model, tmp_path):
    odd = tmp_path / "a dir/with 100% odd+name.gguf"
    odd.parent.mkdir()
    odd.symlink_to(model)
    given = f"./a dir/../{odd.relative_to(tmp_path)}"
    done = run(tmp_path, f"--path_to_gguf_model={given}", *QUICK, "--bench_repetitions=0",
               "--machine_name=M", "--stream_output")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "results/results_llama2").glob("*.csv")] == [
        "M_with_100_odd_name_results.csv"
    ]
    # Streamed; bytes that are no text alone are left out.
    answer = rows(tmp_path)[0]["answer"].replace("\ufffd", "")
    assert answer in " ".join(done.stdout.split())


# What a generation is


def test_counters_cover_every_token_and_nothing_is_reused(context):
    tokens = llama_text.prompt_tokens(context.llm, QUESTIONS[0])
    for _ in range(2):
        row = llama_text.generate(context, tokens, 5, seed=1, temperature=0.8)
        assert (row["prompt_token_len"], row["answer_token_len"]) == (len(tokens), 5)


def test_a_token_that_was_not_evaluated_is_an_error(context, monkeypatch):
    tokens = llama_text.prompt_tokens(context.llm, QUESTIONS[0])
    monkeypatch.setattr(llama_text, "parts_of", lambda _, tokens: [tokens[1:]])
    with pytest.raises(RuntimeError, match="evaluated"):
        llama_text.generate(context, tokens, 5, seed=1, temperature=0.8)


def test_only_a_real_model_stops_at_the_end_of_the_sequence(context, monkeypatch):
    tokens = llama_text.prompt_tokens(context.llm, QUESTIONS[0])
    calls = itertools.count(1)
    monkeypatch.setattr("llama_cpp.llama_vocab_is_eog", lambda *_: next(calls) == 4)
    row = llama_text.generate(context, tokens, 8, seed=1, temperature=0.8)
    assert row["answer_token_len"] == 8
    monkeypatch.setattr(llama_text, "has_random_weights", lambda _: False)
    row = llama_text.generate(context, tokens, 8, seed=1, temperature=0.8)
    assert row["answer_token_len"] == 3


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_shortest_answers(context, max_tokens):
    tokens = llama_text.prompt_tokens(context.llm, QUESTIONS[0])
    row = llama_text.generate(context, tokens, max_tokens, seed=1, temperature=0)
    assert row["answer_token_len"] == max_tokens
    assert (row["tokens_per_second"] is None) == (max_tokens == 1)


def test_seed_decides_the_answer(context):
    tokens = llama_text.prompt_tokens(context.llm, QUESTIONS[0])
    answers = [
        llama_text.generate(context, tokens, 16, seed, temperature=0.8)["answer"]
        for seed in (1, 2, 1)
    ]
    assert answers[0] == answers[2] != answers[1]


class Meter:
    """Says that every window took 6 joules."""

    def begin(self):
        pass

    def end(self):
        return 6.0


def test_joules_of_a_token_and_watts(context):
    tokens = llama_text.prompt_tokens(context.llm, QUESTIONS[0])
    row = llama_text.generate(context, tokens, 4, seed=1, temperature=0, meter=Meter())
    assert row["energy_joules_per_token"] == 1.5 and "joules" not in row
    assert row["average_power_watts"] == pytest.approx(6 / row["total_time"])


def text_of(llm, tokens):
    return [llama_text.piece(llm, token).decode().strip() for token in tokens]


def test_words_of_the_questions_are_tokens(context):
    for question in QUESTIONS:
        prompt = LLAMA2_PROMPT.format(question)
        pieces = re.findall(r"[A-Za-z]+|[^A-Za-z\s]", prompt)
        tokens = llama_text.prompt_tokens(context.llm, question)
        assert text_of(context.llm, tokens) == ["", *pieces]


TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"


def with_template(monkeypatch, template):
    real = llama_text.metadata
    key = "tokenizer.chat_template"
    monkeypatch.setattr(
        llama_text, "metadata", lambda llm, name: template if name == key else real(llm, name)
    )


def test_prompt_follows_the_models_own_chat_template(context, monkeypatch):
    with_template(monkeypatch, TEMPLATE)
    tokens = llama_text.prompt_tokens(context.llm, "How does a key open?", "Be brief.")
    beginning, *rest = tokens
    assert beginning == 1 and 1 not in rest
    said = "".join(text_of(context.llm, tokens))
    assert said == "<system>Bebrief.<user>Howdoesakeyopen?"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('System role not supported') }}",
        "{{ messages[0]['x'] + 1 }}",
        "{% if %}",
    ],
)
def test_template_that_refuses_is_one_line(context, monkeypatch, template):
    with_template(monkeypatch, template)
    with pytest.raises(utils.UserError, match="chat template refuses"):
        llama_text.prompt_tokens(context.llm, "How?", "Be brief.")


# What a user can get wrong


@pytest.mark.parametrize(
    "flag",
    ["--num_questions=0", "--num_questions=21", "--num_questions=x", "--max_tokens=0",
     "--num_times_per_question=0", "--temperature=-1", "--n_gpu_layers=x",
     "--path_to_gguf_model=/nowhere/model.gguf", "--synthetic_model=gpt", "--depths=x",
     "--parallel=0", "--flash_attn=maybe", "--questions_file=/nowhere/questions"],
)  # fmt: skip
def test_bad_usage_is_one_line(flag, tmp_path):
    done = run(tmp_path, flag)
    assert done.returncode == 2
    assert flag.split("=")[0] in one_line(done)


def damaged(model, how):
    """The bytes of a model file with something wrong."""
    data = model.read_bytes()
    if how == "no GGUF":
        return b"\x89PNG" + data[4:]
    if how == "truncated":
        return data[: len(data) * 3 // 4]
    key = data.index(b"general.architecture")
    start = data.index(b"llama", key)
    return data[:start] + b"xlama" + data[start + 5 :]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("no GGUF", "is not a GGUF file"),
        ("truncated", "corrupted or incomplete"),
        ("unknown architecture", "unknown model architecture: 'xlama'"),
    ],
)
def test_bad_model_is_one_line(how, reason, model, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(damaged(model, how))
    done = run(tmp_path, f"--path_to_gguf_model={bad}")
    assert done.returncode == 1
    message = one_line(done)
    assert str(bad) in message and reason in message


def test_verbose_shows_llama_cpps_log(model, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(damaged(model, "truncated"))
    done = run(tmp_path, f"--path_to_gguf_model={bad}", "--verbose")
    assert "llama_model_load: error loading model" in done.stderr


def test_too_small_context_is_bad_usage(model, tmp_path):
    done = run(tmp_path, f"--path_to_gguf_model={model}", "--n_ctx=520")
    assert done.returncode == 2 and "--n_ctx=520" in one_line(done)


def test_too_little_memory(model, capsys):
    size = model.stat().st_size
    with pytest.raises(utils.UserError, match="too little memory"):
        gguf_file.require_memory(model, size - 1, 0)
    gguf_file.require_memory(model, 2 * size, size)
    assert capsys.readouterr().out == ""
    gguf_file.require_memory(model, 2 * size, size - 1)
    assert "it may swap" in capsys.readouterr().out


def test_missing_package(monkeypatch):
    monkeypatch.setattr(llama.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(utils.UserError, match="pip install llama-cpp-python"):
        script.find_model(None)


# The default model


def test_default_model_is_downloaded_once(model, hub, tmp_path):
    repository = {script.DEFAULT_MODEL: model.read_bytes(), "other.gguf": b"large"}
    hub.add("model", script.HUB_REPOSITORY, repository)
    flags = ("--data=real", *QUICK, "--bench_repetitions=0", "--machine_name=M")
    assert run(tmp_path, *flags).returncode == 0
    hub.requests.clear()
    done = run(tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    names = [path.name for path in (tmp_path / "data").rglob("*.gguf")]
    assert names == [script.DEFAULT_MODEL]
    assert len(rows(tmp_path)) == 4


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = run(tmp_path, "--data=real")
    assert done.returncode == 1 and "--data=real" in one_line(done)


def test_auto_falls_back_to_the_twin(hub, tmp_path, monkeypatch):
    hub.fault = "500"
    monkeypatch.setattr(script, "ARCHITECTURES", {"llama-2-7b": TINY})
    options = Namespace(model=script.DEFAULT_MODEL, data="auto",
                        data_dir=tmp_path, synthetic_model="llama-2-7b")  # fmt: skip
    assert script.find_model(options) == tmp_path / "synthetic/tiny.Q4_0.gguf"


# What cannot be helped


def start_and_wait_for_a_row(model, tmp_path):
    """A run of many long answers, and the process that computes them, after its first row."""
    flags = (f"--path_to_gguf_model={model}", "--bench_repetitions=0", "--num_questions=1",
             "--num_times_per_question=500", "--n_threads=1")  # fmt: skip
    process = subprocess.Popen(
        command(tmp_path, *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_signals,
    )
    for line in process.stdout:
        if "tokens/s" in line:
            break
    return process


def test_ctrl_c_keeps_the_rows(model, tmp_path):
    process = start_and_wait_for_a_row(model, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors and "rows of this run are saved under" in errors
    assert {row["status"] for row in rows(tmp_path)} == {"ok"}


def test_crash_of_llama_cpp_costs_one_row(model, tmp_path):
    import psutil

    process = start_and_wait_for_a_row(model, tmp_path)
    children = psutil.Process(process.pid).children()
    (child,) = [c for c in children if "spawn_main" in " ".join(c.cmdline())]
    child.send_signal(signal.SIGSEGV)
    process.communicate(timeout=30)
    assert process.returncode == 1
    *good, last = rows(tmp_path)
    assert {row["status"] for row in good} == {"ok"}
    assert (last["status"], last["error"]) == ("killed", "ended by SIGSEGV")
    assert int(last["question_iter"]) == len(good) + 1


# The summary


def test_mean_and_interval():
    mean, half_width = mean_and_interval([1.0, 2.0, 3.0])
    assert (mean, half_width) == (2.0, pytest.approx(2.4841, abs=1e-4))
    assert mean_and_interval([4.0]) == (4.0, None)


def test_max_seconds_never_ends_before_a_token_is_generated(model, tmp_path):
    done = run(tmp_path, f"--model={model}", "--max_seconds=0.001", "--bench_repetitions=1")
    assert done.returncode == 0, done.stderr
    assert [row["question"] for row in rows(tmp_path)] == ["pp512", "tg128"]
    assert float(rows(tmp_path)[-1]["tokens_per_second"]) > 0


def test_resume_asks_what_has_no_good_row(model, tmp_path):
    asked = (f"--model={model}", "--num_questions=1", "--max_tokens=4", "--n_threads=1")
    once = ("--bench_repetitions=1", "--num_times_per_question=1")
    assert run(tmp_path, *asked, *once).returncode == 0
    twice = ("--bench_repetitions=1", "--num_times_per_question=2")
    done = run(tmp_path, *asked, *twice, "--resume")
    assert done.returncode == 0 and "pp512 (1): skipped" in done.stdout
    names = [(row["question"], row["question_iter"]) for row in rows(tmp_path)]
    question = QUESTIONS[0]
    assert names == [("pp512", "1"), ("tg128", "1"), (question, "1"), (question, "2")]
    # Another configuration has no row yet.
    for changed, count in (("--flash_attn=off", 7), ("--seed=7", 10)):
        run(tmp_path, *asked, *once, "--resume", changed)
        assert len(rows(tmp_path)) == count


def test_shuffled_questions_are_the_seeds(model, tmp_path):
    asked = (f"--model={model}", "--num_questions=4", "--num_times_per_question=1",
             "--max_tokens=2", "--bench_repetitions=1", "--n_threads=1", "--seed=1")  # fmt: skip
    for _ in range(2):
        assert run(tmp_path, *asked, "--shuffle_questions").returncode == 0
    names = [row["question"] for row in rows(tmp_path)]
    in_order = ["pp512", "tg128", *QUESTIONS[:4]]
    assert names[:6] == names[6:] != in_order and sorted(names[:6]) == sorted(in_order)
