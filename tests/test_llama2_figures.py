"""llama-bench's figures at depth and in parallel, what they read, and the table of them."""

import signal
from argparse import Namespace

import fake_nvml
import pynvml
import pytest
from fake_nvml import Card

import harness.twins.gguf
from harness import markdown
from harness.bandwidth import measured_bandwidth
from harness.endings import outcome_of_exit_code
from harness.frameworks import llama, llama_bench
from harness.llm.experiment import COLUMNS as LLM_COLUMNS
from harness.llm.experiment import attempt
from harness.llm.summary import verdicts
from harness.process import UserError
from harness.questions import figure_parts, figures_of
from harness.sweep import failure
from harness.windows import last_over_first
from llama2_test import EXPERIMENT

TINY = harness.twins.gguf.Architecture("tiny.Q4_0", 2, 256, 512, 4, 2, 4096, 2048, 1e-6)
EXPERTS = harness.twins.gguf.ARCHITECTURES["qwen3-30b-a3b"]._replace(
    name="experts", layers=2, embedding=256, heads=4, kv_heads=2, head_size=64, vocabulary=4096,
    experts=8, experts_used=2, expert_feed_forward=256,
)  # fmt: skip
OPTIONS = {
    "verbose": False,
    "device": "auto",
    "n_gpu_layers": -1,
    "n_threads": 1,
    "flash_attn": "auto",
    "split_mode": "layer",
    "tensor_split": "",
}


def loaded(model, folder):
    path = harness.twins.gguf.ensure_twin(model, "How does a key open the lock?", folder)
    options = Namespace(model_path=path, **OPTIONS)
    return llama.load(options), options


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return loaded(TINY, tmp_path_factory.mktemp("tiny"))


def last_places(context, sequences):
    """The position of the last token in the cache of each sequence."""
    import llama_cpp

    memory = llama_cpp.llama_get_memory(context.handle)
    return [llama_cpp.llama_memory_seq_pos_max(memory, number) for number in range(sequences)]


@pytest.mark.parametrize(
    ("figure", "last"),
    [("pp512", [511]), ("tg128", [127]), ("pp512@d300", [811]), ("tg128@d300", [427]),
     ("pp512@p3", [511] * 3), ("tg128@p3", [127] * 3)],
)  # fmt: skip
def test_every_token_of_a_figure_is_evaluated(tiny, figure, last, monkeypatch):
    llm, options = tiny
    states, filled, real = {}, [], llama_bench.prefilled
    monkeypatch.setattr(
        llama_bench,
        "prefilled",
        lambda context, depth: filled.append(depth) or real(context, depth),
    )
    with llama.open_context(llm, options, *llama_bench.context_size(figure)) as context:
        llama_bench.prepare(context, figure, states)
        llama_bench.prepare(context, figure, states)
        for _ in range(2):
            row = llama_bench.measure(context, figure, states)
            assert last_places(context, len(last)) == last
    test, depth, parallel = figure_parts(figure)
    assert filled == [depth] * (depth > 0)  # once, however often it is measured
    assert (row["depth"], row["parallel"]) == (depth, parallel)
    tokens = (512 if test == "pp512" else 128) * parallel
    speed = row["prompt_tokens_per_second" if test == "pp512" else "tokens_per_second"]
    assert speed == pytest.approx(tokens / row["total_time"])
    if figure == "tg128@p3":
        assert row["tokens_per_second_each"] == pytest.approx(speed / 3)
    if figure == "pp512@p3":
        assert row["time_to_first_token"] == row["total_time"]


def test_what_a_token_reads(tiny, tmp_path):
    llm, options = tiny
    weights = {
        name: harness.twins.gguf.size_in_bytes(shape, kind)
        for name, shape, kind in harness.twins.gguf.tensors(TINY)
    }
    in_use = sum(weights.values()) - weights["token_embd.weight"]
    of_a_token = 2 * 2 * 2 * 64 * 2  # keys and values of 2 layers, 2 heads of 64, two bytes each
    with llama.open_context(llm, options, 512, sequences=2) as context:
        alone = 1e9 * llama.gb_per_step(context, depth=100)
        both = 1e9 * llama.gb_per_step(context, depth=100, sequences=2)
    # The log has two digits of a MiB.
    assert alone == pytest.approx(in_use + 100 * of_a_token, abs=2**20 / 100)
    assert both - alone == pytest.approx(100 * of_a_token)


def test_of_experts_only_the_chosen_are_read(tmp_path):
    llm, options = loaded(EXPERTS, tmp_path)
    read = 0
    for name, shape, kind in harness.twins.gguf.tensors(EXPERTS):
        share = 0 if name == "token_embd.weight" else 2 / 8 if "_exps" in name else 1
        read += share * harness.twins.gguf.size_in_bytes(shape, kind)
    with llama.open_context(llm, options, 512, sequences=2) as context:
        found = 1e9 * llama.gb_per_step(context, depth=0)
        assert llama.gb_per_step(context, depth=0, sequences=2) is None
    assert found == pytest.approx(read, abs=2**20 / 20)


@pytest.mark.parametrize(("asked", "used"), [("auto", "on"), ("on", "on"), ("off", "off")])
def test_flash_attention_is_asked_for_and_proven(tiny, asked, used):
    llm, options = tiny
    options = Namespace(**{**vars(options), "flash_attn": asked})
    with llama.open_context(llm, options, 512) as context:
        assert context.columns["flash_attn_used"] == used
        assert context.columns["kv_cache_gb"] == 512 * 2 * 2 * 2 * 64 * 2 / 1e9
        assert context.columns["compute_buffers_gb"] > 0


def test_context_that_does_not_fit_is_out_of_memory(tiny, monkeypatch):
    def refuse(*_):
        llama.LOG.append("llama_init_from_model: failed to allocate buffer for kv cache\n")

    monkeypatch.setattr("llama_cpp.llama_init_from_model", refuse)
    with (
        pytest.raises(MemoryError, match="failed to allocate buffer for kv cache"),
        llama.open_context(*tiny, n_ctx=512),
    ):
        pass


def test_what_is_asked_in_order():
    assert figures_of([0, 4096], [1, 4]) == [
        "pp512", "tg128", "pp512@d4096", "tg128@d4096", "pp512@p4", "tg128@p4"
    ]  # fmt: skip
    assert figure_parts("How?") is None and figure_parts("tg128@d4096") == ("tg128", 4096, 1)
    options = Namespace(bench_repetitions=1, num_times_per_question=2, questions=["How?"],
                        depths=[0], parallel=[1])  # fmt: skip
    points = [tuple(point.values()) for point in EXPERIMENT.points(options)]
    assert points == [("pp512", 1), ("tg128", 1), ("How?", 1), ("How?", 2)]


def test_a_turn_that_fails_is_a_row():
    def too_large():
        raise MemoryError("no room")

    row = attempt({"question": "tg128", "question_iter": 2}, too_large)
    assert (row["question"], row["question_iter"]) == ("tg128", 2)
    assert (row["status"], row["error"]) == ("out_of_memory", "no room")


def test_sustained_ratio_and_what_is_said_of_it():
    assert last_over_first([10.0, 9.0], sum) is None
    assert last_over_first([10, 10, 9, 9, 8, 8], sum) == 0.8
    row = {"status": "ok", "question": "Why?", "data": "real", "sustained_ratio": 0.8}
    reads = {"status": "ok", "question": "tg128", "data": "real", "bandwidth_gb_per_second": 50.0}
    assert any("0.80 of their first speed" in line for line in verdicts([row]))
    assert "50 GB/s" in verdicts([reads])[0] and "selfcheck" in verdicts([reads])[0]
    assert "near its limit" in verdicts([reads], bandwidth=55.0)[0]
    assert "not what limits it" in verdicts([reads], bandwidth=160.0)[0]


def test_bandwidth_that_selfcheck_measured(tmp_path):
    assert measured_bandwidth(tmp_path, "M") is None
    path = tmp_path / "selfcheck/M.json"
    path.parent.mkdir()
    path.write_text('{"findings": [{"check": "memory bandwidth, STREAM triad", "value": 70.5}]}')
    assert measured_bandwidth(tmp_path, "M") == 70.5
    path.write_text("{")
    with pytest.raises(UserError, match="M.json"):
        measured_bandwidth(tmp_path, "M")


def test_triad_moves_what_it_says():
    import torch

    from selfchecks.ceilings import stream_triad

    triad, moved, where = stream_triad(1000)
    (result,) = [each for each in triad() if isinstance(each, torch.Tensor)]
    assert (result == 4).all() and moved == 3 * 4 * 1000
    assert where in (f"{torch.get_num_threads()} threads", "cuda", "mps")


def test_markdown_is_llama_benchs_table():
    shared = {
        "status": "ok", "device": "cpu", "description": "llama 7B Q4_0", "weights_gb": 3.825,
        "parameters": 6738415616, "n_threads": 2, "n_gpu_layers": -1,
    }  # fmt: skip
    rows = [
        shared | {"question": "pp512", "prompt_tokens_per_second": 20.0},
        shared | {"question": "pp512", "prompt_tokens_per_second": 22.0},
        shared | {"question": "tg128@d4096", "tokens_per_second": 5.5},
        shared | {"question": "How?", "tokens_per_second": 99.0},
    ]
    # The first three lines are llama-bench's own, of a model of this size.
    assert markdown.llama_bench_table(rows).splitlines() == [
        "| model                          |       size |     params | backend    | threads "
        "|            test |                  t/s |",
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: "
        "| --------------: | -------------------: |",
        "| llama 7B Q4_0                  |   3.56 GiB |     6.74 B | CPU        |       2 "
        "|           pp512 |         21.00 ± 1.41 |",
        "| llama 7B Q4_0                  |   3.56 GiB |     6.74 B | CPU        |       2 "
        "|   tg128 @ d4096 |          5.50 ± 0.00 |",
    ]


def test_a_soak_generates_until_the_speed_is_steady(tiny, monkeypatch):
    monkeypatch.setattr("harness.soak.SPAN", 0.2)
    monkeypatch.setattr("harness.soak.LONGEST", 0.5)
    generated = []
    measure = llama_bench.measure

    def counted(context, figure, states):
        generated.append(figure)
        return measure(context, figure, states)

    monkeypatch.setattr(llama_bench, "measure", counted)
    found = llama_bench.soak(*tiny)
    assert 0.2 <= found["soak_seconds"] < 5
    assert set(generated) == {"tg128"} and len(generated) > 2
    assert {"thermal_protocol", "soak_seconds"} <= set(LLM_COLUMNS)


@pytest.mark.parametrize(
    ("driver", "named"), [("580.159.03", ", NVIDIA driver 580.159.03"), ("", "")]
)
def test_a_library_that_broke_the_process_is_named_with_its_build(driver, named, monkeypatch):
    start = None if driver else pynvml.NVMLError_LibraryNotFound()
    fake_nvml.install(monkeypatch, version=driver, start=start)
    said = ["load_tensors: done", "free(): invalid pointer"]
    facts = {"framework": "llama-cpp-python 0.3.36, CUDA 13.0.96"}
    row = failure(outcome_of_exit_code(-signal.SIGABRT, said), facts)
    assert row["error"] == (
        "ended by SIGABRT (free(): invalid pointer: a library freed what is not its own; try "
        "another build of it, or another driver); llama-cpp-python 0.3.36, CUDA 13.0.96" + named
    )
    row = failure(outcome_of_exit_code(-signal.SIGSEGV, []), facts)
    assert row["error"] == "ended by SIGSEGV"


@pytest.mark.parametrize(("cards", "said"), [([Card()], True), ([], False)])
def test_a_build_for_the_processor_beside_a_card_is_noted(cards, said, monkeypatch, capsys):
    fake_nvml.install(monkeypatch, *cards)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    facts = dict.fromkeys(("layers", "layers_on_gpu"))
    llama.tell_where(facts | {"device": "cpu"}, Namespace(device="auto", n_gpu_layers=-1))
    assert ("although there is a GPU" in capsys.readouterr().out) is said


def test_the_build_is_named_with_every_cuda_runtime_that_is_loaded(tmp_path):
    import llama_cpp

    name = f"llama-cpp-python {llama_cpp.__version__}"
    maps = tmp_path / "maps"
    assert llama.build(maps) == name  # elsewhere than on Linux there is no such file
    line = "7f00-7f10 r-xp 00000000 08:01 42 {}\n"
    path = "/usr/local/cuda-13.0/targets/x86_64-linux/lib/libcudart.so.13.0.96"
    maps.write_text(2 * line.format(path) + line.format("/usr/lib/libc.so.6"))
    assert llama.build(maps) == f"{name}, CUDA 13.0.96"
    with maps.open("a") as file:
        file.write(line.format("/site-packages/nvidia/cuda_runtime/lib/libcudart.so.12"))
    assert llama.build(maps) == f"{name}, CUDA 12 and 13.0.96"
