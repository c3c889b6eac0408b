"""ONNX inference: where nodes ran, right answers, timing, rows and scores."""

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import fake_nvml
import numpy as np
import onnx
import onnxruntime
import pytest
from fake_nvml import Card

import harness.nvidia
import onnx_test_inference as script
from harness.disturbance import Watch
from harness.frameworks import onnx as protocol
from harness.frameworks import onnx_placement
from harness.models.networks import NETWORKS
from harness.process import UsageError, UserError
from harness.twins import onnx_files
from reporting.scores import score_bars, scores
from reporting.speeds import speeds
from reporting.tables import load_results

ROOT = Path(__file__).parent.parent
CPU = protocol.UNITS["cpu"]
NAMES = list(NETWORKS)
pytest_plugins = ["tiny_network"]


# Where the nodes ran


def profile_of(exported, unit, folder, batch_size=1, precision="fp32"):
    path = onnx_files.file_path(exported, "tiny", precision)
    session = protocol.make_session(path, unit, batch_size, profile=folder / "profile")
    session.run(None, onnx_files.random_inputs("tiny", batch_size, 0))
    return onnx_placement.read_profile(Path(session.end_profiling()))


@pytest.mark.parametrize("precision", onnx_files.PRECISIONS)
def test_operations_are_counted_from_the_profile(exported, tiny, tmp_path, precision):
    for batch_size in (1, 2):
        nodes = profile_of(exported, CPU, tmp_path, batch_size, precision)
        assert onnx_placement.total(nodes) == batch_size * tiny


@pytest.mark.parametrize(
    "kind, inputs, output, expected",
    [
        ("Conv", [[1, 4, 9, 9], [8, 2, 3, 3]], [1, 8, 7, 7], 2 * 8 * 49 * 18),
        ("ConvTranspose", [[1, 4, 9, 9], [4, 8, 2, 2]], [1, 8, 18, 18], 2 * 4 * 81 * 32),
        ("MatMul", [[2, 5, 7], [7, 3]], [2, 5, 3], 2 * 30 * 7),
        ("Gemm", [[7, 5], [7, 3], [3]], [5, 3], 2 * 15 * 7),
        ("Relu", [[2, 5]], [2, 5], 0),
    ],
)
def test_operations_of_a_node(kind, inputs, output, expected):
    described = {
        "op_name": kind,
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    assert onnx_placement.flop(described) == expected


def test_a_provider_that_takes_nothing_is_found_out(exported, tmp_path):
    """A real one of ONNX Runtime's: it is in the session, and every node runs on the CPU."""
    azure = "AzureExecutionProvider"
    if azure not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {azure}")
    unit = protocol.Unit(azure, "cpu")
    placed = profile_of(exported, unit, tmp_path)
    row = onnx_placement.columns(placed, profile_of(exported, CPU, tmp_path), unit, tmp_path)
    assert row["placement"] == "partly on CPU"
    assert row["provider_flops_percent"] == row["provider_nodes_percent"] == 0
    assert row["partitions"] == 0


CORE_ML = "CoreMLExecutionProvider"


def event(kind, provider, start, inputs=(), output=()):
    arguments = {"op_name": kind, "provider": provider, "output_type_shape": [{"float": output}]}
    arguments["input_type_shape"] = [{"float": list(shape)} for shape in inputs]
    return {"cat": "Node", "name": f"{kind}_kernel_time", "ts": start, "args": arguments}


def core_ml_profile(path, on_cpu):
    """A profile as Core ML's provider leaves it: its parts are nodes without operations."""
    events = [{"cat": "Session", "name": "model_run", "ts": 0, "args": {}}]
    for number, (kind, *shapes) in enumerate(on_cpu):
        events.append(event(f"CoreML_7_{number}", CORE_ML, 10 * number + 1))
        events.append(event(kind, "CPUExecutionProvider", 10 * number + 2, *shapes))
    events.append(event("CoreML_7_9", CORE_ML, 99))
    path.write_text(json.dumps(events))
    return onnx_placement.read_profile(path)


WHOLE = [
    onnx_placement.Node(kind, CPU.provider, flop)
    for kind, flop in (("Conv", 850), ("MatMul", 150), ("Relu", 0), ("Pad", 0))
]


def test_what_core_ml_left_to_the_cpu_is_subtracted(tmp_path):
    unit = protocol.UNITS["coreml_cpu"]
    placed = core_ml_profile(tmp_path / "p", [("Pad", [[1, 3]], [1, 5])])
    row = onnx_placement.columns(placed, WHOLE, unit, tmp_path)
    assert row["provider_flops_percent"] == 100 and row["provider_nodes_percent"] == 75
    assert row["partitions"] == 2 and row["placement"] == ""
    product = ("MatMul", [[5, 5], [5, 3]], [5, 3])  # 150 operations
    placed = core_ml_profile(tmp_path / "p", [product])
    row = onnx_placement.columns(placed, WHOLE, unit, tmp_path)
    assert row["provider_flops_percent"] == pytest.approx(85)
    assert row["placement"] == "partly on CPU"


def stand_in_plan(monkeypatch, folder, devices):
    """Core ML's compute plan, with the cost of an operation on each of the devices."""
    kinds = {name: type(name, (), {}) for name, _ in devices}

    class Plan:
        @staticmethod
        def load_from_path(path, compute_units):
            assert path.endswith("a.mlmodelc") and compute_units == "the Neural Engine"
            return Plan()

        block = SimpleNamespace(operations=[*devices, None])
        function = SimpleNamespace(block=block)
        model_structure = SimpleNamespace(program=SimpleNamespace(functions={"main": function}))

        def get_estimated_cost_for_mlprogram_operation(self, operation):
            return operation and SimpleNamespace(weight=operation[1])

        def get_compute_device_usage_for_mlprogram_operation(self, operation):
            return operation and SimpleNamespace(preferred_compute_device=kinds[operation[0]]())

    tools, models, plan = (ModuleType(f"coremltools{end}") for end in ("", ".m", ".p"))
    tools.ComputeUnit = {"CPU_AND_NE": "the Neural Engine"}
    tools.__spec__ = SimpleNamespace()
    plan.MLComputePlan = Plan
    monkeypatch.setitem(sys.modules, "coremltools", tools)
    monkeypatch.setitem(sys.modules, "coremltools.models", models)
    monkeypatch.setitem(sys.modules, "coremltools.models.compute_plan", plan)
    monkeypatch.setattr(onnx_placement.platform, "mac_ver", lambda: ("15.1", (), ""))
    (folder / "hash" / "a.mlmodelc").mkdir(parents=True)


def test_core_ml_on_its_cpu_instead_of_the_neural_engine_is_found_out(tmp_path, monkeypatch):
    unit = protocol.UNITS["coreml_neural_engine"]
    placed = [onnx_placement.Node("CoreML_1_0", CORE_ML, 0)]
    row = onnx_placement.columns(placed, WHOLE, unit, tmp_path)
    assert row["placement"] == "unit not proven" and row["unit_cost_percent"] is None
    costs = [("MLCPUComputeDevice", 0.2), ("MLNeuralEngineComputeDevice", 0.6)]
    stand_in_plan(monkeypatch, tmp_path, costs)
    row = onnx_placement.columns(placed, WHOLE, unit, tmp_path)
    assert row["provider_flops_percent"] == 100 and row["unit_cost_percent"] == pytest.approx(75)
    assert row["placement"] == "partly on CPU"
    costs[0] = ("MLNeuralEngineComputeDevice", 0.2)
    monkeypatch.undo()
    stand_in_plan(monkeypatch, tmp_path / "again", costs)
    row = onnx_placement.columns(placed, WHOLE, unit, tmp_path / "again")
    assert row["placement"] == "" and row["unit_cost_percent"] == 100


# Units


def test_auto_is_every_unit_that_is_there(monkeypatch):
    there = ["CoreMLExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    core_ml = ["coreml_cpu", "coreml_gpu", "coreml_neural_engine"]
    assert protocol.choose_units(["auto"], "auto") == ["cpu", *core_ml]
    assert protocol.choose_units(["auto"], "mps") == core_ml[1:]
    assert protocol.choose_units(["coreml_gpu"], "auto") == ["coreml_gpu"]
    with pytest.raises(UsageError, match="--device=cuda:1"):
        protocol.choose_units(["auto"], "cuda:1")


def test_each_row_names_the_device_that_it_used(monkeypatch):
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    fake_nvml.install(monkeypatch, Card("TITAN"))
    monkeypatch.setattr(harness.nvidia, "card_bytes", lambda index: 24 << 30)
    options = argparse.Namespace(
        providers=["auto"], device="auto", data="auto", models=[], precisions=[], data_dir=Path(".")
    )
    monkeypatch.setattr(onnx_files, "ensure_files", lambda *_: None)
    facts = protocol.prepare(options)
    assert facts["found"] == {"providers": ["cpu", "cuda"]}
    assert facts["machine"] == "TITAN_24GB"
    assert facts["provider"] == {"cpu": {"device": "cpu"}, "cuda": {"device": "cuda (TITAN)"}}


def test_a_missing_provider_is_one_line():
    with pytest.raises(UsageError, match="--providers=coreml_gpu: .* has no CoreMLExecutionProv"):
        protocol.choose_units(["cpu", "coreml_gpu"], "auto")


def test_a_provider_that_does_not_start_is_an_error(exported, monkeypatch):
    """ONNX Runtime only warns, for instance where CUDA's libraries are missing."""
    path = onnx_files.file_path(exported, "tiny", "fp32")
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession",
        lambda path, settings, providers: real(path, settings, ["CPUExecutionProvider"]),
    )  # fmt: skip
    with pytest.raises(UserError, match="CUDAExecutionProvider is installed but does not start"):
        protocol.make_session(path, protocol.UNITS["cuda"], 1)


# The answer


def measure(exported, precision="fp32", batch_size=2):
    options = argparse.Namespace(data_dir=exported, device="auto", seed=1, max_seconds=0.6)
    return protocol.measure("tiny", "cpu", precision, batch_size, options)


def test_a_row_has_its_numbers(exported):
    row = measure(exported)
    assert row["placement"] == "" and row["provider_flops_percent"] == 100
    assert row["cosine_similarity"] == pytest.approx(1) and row["runs_timed"] > 100
    assert row["latency_ms"] <= row["latency_p90_ms"] <= row["latency_p99_ms"]
    # Two samples in a batch: twice as many inferences as batches.
    mean = 2 / row["inferences_per_second"]
    assert mean > row["latency_ms"] / 1000 / 2
    assert row["first_inference_seconds"] > 0 and row["exporter"].startswith("torch")
    assert set(row) <= set(script.EXPERIMENT.columns)


def test_a_wrong_answer_is_an_error_however_fast(exported, tmp_path):
    folder = tmp_path / "onnx"
    folder.mkdir()
    for precision in ("fp32", "fp16"):
        path = onnx_files.file_path(exported, "tiny", precision)
        for file in (path, onnx_files.stamp_path(path)):
            (folder / file.name).write_bytes(file.read_bytes())
    assert measure(tmp_path, "fp16")["cosine_similarity"] > 0.999
    edited = onnx.load(folder / "tiny-fp16.onnx")
    weights = max(edited.graph.initializer, key=lambda tensor: math.prod(tensor.dims))
    values = np.roll(onnx.numpy_helper.to_array(weights), 1, axis=1)
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(edited, folder / "tiny-fp16.onnx")
    with pytest.raises(UserError, match="wrong answer: cosine similarity"):
        measure(tmp_path, "fp16")


@pytest.mark.parametrize(
    "answer",
    [
        [np.array([1.0, 2.0, np.nan])],
        [np.array([1.0, 2.0, 3.2])],  # the cosine alone would let it pass
        [-np.array([1.0, 2.0, 3.0])],
    ],
)
def test_numbers_that_differ_are_wrong(answer):
    reference = [np.array([1.0, 2.0, 3.0])]
    assert protocol.same_answer(reference, reference, "fp32")["largest_relative_difference"] == 0
    with pytest.raises(UserError, match="wrong answer"):
        protocol.same_answer(answer, reference, "fp32")


# Timing


def test_the_clock_waits_for_the_device():
    """A card whose work goes on after `run_with_iobinding` has returned."""

    class Binding:
        def synchronize_outputs(self):
            time.sleep(0.02)

    session = SimpleNamespace(run_with_iobinding=lambda binding: None)
    run = protocol.runner(session, protocol.UNITS["cuda"])
    row = protocol.time_inferences(run, [Binding()], 4, 0.1, Watch())
    assert row["latency_ms"] >= 20 and row["inferences_per_second"] <= 4 / 0.02


def test_the_first_inference_stands_apart():
    slow = iter([0.4])
    row = protocol.time_inferences(
        lambda binding: time.sleep(next(slow, 0.005)), [None, None], 1, 0.1, Watch()
    )
    assert row["first_inference_seconds"] >= 0.4
    assert row["inferences_per_second"] > 30
    few = protocol.latency_columns([0.1] * 9)
    assert few == {"latency_ms": 100, "latency_p90_ms": None, "latency_p99_ms": None}


def test_energy_is_of_the_steady_part():
    meter = SimpleNamespace(begin=lambda: None, end=lambda: 60.0)
    row = protocol.time_inferences(lambda _: time.sleep(0.01), [None], 2, 0.1, Watch(), meter)
    assert row["energy_joules_per_inference"] == 60 / (2 * row["runs_timed"])


# As a user does


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")

    def run(*flags):
        return subprocess.run(
            [sys.executable, ROOT / "onnx_test_inference.py", "--models=mobilenetv3",
             f"--data_dir={folder / 'data'}", f"--results_dir={folder / 'results'}",
             "--max_seconds=0.2", "--machine_name=A", *flags],
            capture_output=True, text=True,
        )  # fmt: skip

    done = run("--precision=fp32, int8", "--batch_sizes=2")
    assert done.returncode == 0, done.stderr
    return folder, done, run


def rows_of(folder):
    path = next((folder / "results/results_onnx_inference").glob("*.csv"))
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_writes_rows_that_check(run_once):
    folder, done, _ = run_once
    rows = rows_of(folder)
    points = [(row["provider"], row["precision"], row["batch_size"]) for row in rows]
    assert points == [("cpu", "fp32", "2"), ("cpu", "int8", "2")]
    assert all(row["status"] == "ok" and row["network"] == "mobilenetv3" for row in rows)
    assert all(float(row["provider_flops_percent"]) == 100 for row in rows)
    assert "exporting mobilenetv3, int8 (once" in done.stdout + done.stderr
    checked = subprocess.run(
        [sys.executable, ROOT / "check_results.py", folder / "results"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def test_the_exported_file_has_the_published_operations(run_once, tmp_path):
    folder, *_ = run_once
    path = onnx_files.file_path(folder / "data", "mobilenetv3", "fp32")
    session = protocol.make_session(path, CPU, 1, profile=tmp_path / "profile")
    session.run(None, onnx_files.random_inputs("mobilenetv3", 1, 0))
    nodes = onnx_placement.read_profile(Path(session.end_profiling()))
    expected = NETWORKS["mobilenetv3"].gflop
    assert onnx_placement.total(nodes) / 1e9 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--providers=coreml_gpu"], "--providers=coreml_gpu: ONNX Runtime"),
        (["--data=real"], "--data=real: these networks have random weights"),
        (["--models=alexnet"], "'alexnet' is not a list of names"),
    ],
)
def test_wrong_flags_are_one_line(run_once, flags, said):
    _, _, run = run_once
    done = run(*flags)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]


# Labels and scores


def write_rows(folder, rows):
    path = folder / "results_onnx_inference/M_random-inputs_networks_0_onnx_results.csv"
    path.parent.mkdir(parents=True)
    shared = dict(
        provider="cpu", precision="fp32", batch_size="1", status="ok", data="synthetic",
        machine="M", device="cpu", framework="onnxruntime 1.32.0", project_version="1.0.0",
        started_at="2026-11-25T18:00:00+00:00", placement="",
    )  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, script.EXPERIMENT.header, restval="")
        writer.writeheader()
        writer.writerows(shared | row for row in rows)
    return load_results(folder)


def test_a_score_is_of_a_whole_set_only(tmp_path):
    fast = [{"network": n, "inferences_per_second": 10 ** (i % 2)} for i, n in enumerate(NAMES)]
    short = [row | {"precision": "int8"} for row in fast[:-1]]
    results = write_rows(tmp_path, fast + short)
    found = scores(results, script.EXPERIMENT)
    assert found["series"].tolist() == ["M, cpu, fp32"] and found["panel"].tolist() == ["batch 1"]
    assert found["score"].tolist() == [pytest.approx(10 ** (5 / 11))]


def test_partly_on_cpu_is_in_the_label(tmp_path):
    rows = [{"network": n, "inferences_per_second": 5, "placement": ""} for n in NAMES]
    rows[3]["placement"] = "partly on CPU"
    results = write_rows(tmp_path, rows)
    labelled = speeds(results).query("configuration == 'partly on CPU'")
    assert labelled["test"].unique().tolist()[0].startswith(NAMES[3])
    assert scores(results, script.EXPERIMENT)["series"].tolist() == ["M, cpu, fp32, partly on CPU"]


def test_a_score_takes_undisturbed_numbers_and_says_where_there_are_none(tmp_path):
    calm = [{"network": n, "inferences_per_second": 5} for n in NAMES]
    later = {"placement": "partly on CPU", "started_at": "2027-01-01T00:00:00+00:00"}
    busy = calm[3] | later | {"inferences_per_second": 1, "other_load_percent": 50}
    (score,) = scores(write_rows(tmp_path / "a", [*calm, busy]), script.EXPERIMENT).to_dict(
        "records"
    )
    assert score["score"] == pytest.approx(5) and not score["disturbed"]
    assert score["series"] == "M, cpu, fp32"
    results = write_rows(tmp_path / "b", [*calm[:3], busy, *calm[4:]])
    assert scores(results, script.EXPERIMENT)["disturbed"].all()
    names = score_bars(results, script.EXPERIMENT).axes[0].get_yticklabels()
    assert names[0].get_text().replace("\n", " ").endswith("partly on CPU, disturbed")
