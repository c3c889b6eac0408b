"""The one ONNX Runtime protocol: units, sessions, timing, and whether the answer is right.

A unit is an execution provider with its options. What the code rests on, as documented:
- Core ML's options (MLComputeUnits, ModelFormat, RequireStaticInputShapes, ModelCacheDirectory):
  https://onnxruntime.ai/docs/execution-providers/CoreML-ExecutionProvider.html
- The Neural Engine computes in float16 only: an ML program in float32 runs on GPU and CPU, one in
  float16 on the Neural Engine too. https://apple.github.io/coremltools/docs-guides/source/
  typed-execution.html. ModelFormat is MLProgram, because there a number's type is what the file
  says; Core ML chooses it by itself in the older NeuralNetwork format.
- A provider may return wrong numbers in silence (issue 32569 of github.com/microsoft/onnxruntime:
  Core ML, float16, macOS 15), hence the comparison with the CPU.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import harness.machine
import harness.nvidia
from harness.clock import WINDOW_SECONDS
from harness.device import Device
from harness.disturbance import Watch
from harness.energy import energy_meter
from harness.frameworks import onnx_placement
from harness.process import UsageError, UserError
from harness.twins import onnx_files
from harness.windows import Window, steady_rate, sustained_ratio

FRESH_INPUTS = 4  # random ones, taken in turn
WARMUP_RUNS, WARMUP_SECONDS = 3, 1.0  # after the first inference: whichever is reached first
SECONDS = 5.0  # of steady work, unless --max_seconds says otherwise
# Lowest cosine similarity to, and largest difference from the CPU's fp32 answer (as a part of its
# largest number) with which a precision's answer is right. Random weights pass on what rounding
# does to them as trained ones do not: int8 strays to 0.83 and 0.7 in correct runs of DeepLabV3.
LIMITS = {"fp32": (0.9999, 0.01), "fp16": (0.999, 0.1), "int8": (0.75, 1.0)}


class Unit(NamedTuple):
    """Where a network runs: a provider, its options, and the `--device` that asks for it."""

    provider: str
    device: str
    options: dict[str, str] = {}

    @property
    def is_core_ml(self) -> bool:
        return self.provider == "CoreMLExecutionProvider"


def core_ml(units: str, device: str) -> Unit:
    options = {"MLComputeUnits": units, "ModelFormat": "MLProgram", "RequireStaticInputShapes": "1"}
    return Unit("CoreMLExecutionProvider", device, options)


UNITS = {
    "cpu": Unit("CPUExecutionProvider", "cpu"),
    # fp32 is true float32, as in the collection's other experiments.
    "cuda": Unit("CUDAExecutionProvider", "cuda", {"use_tf32": "0"}),
    "coreml_cpu": core_ml("CPUOnly", "cpu"),
    "coreml_gpu": core_ml("CPUAndGPU", "mps"),
    "coreml_neural_engine": core_ml("CPUAndNeuralEngine", "mps"),
}


# Once per sweep


def prepare(options) -> dict:
    """Settle units, networks and files; returns the columns that all rows share."""
    import onnxruntime

    if options.data == "real":
        raise UsageError("--data=real: these networks have random weights; use --data=synthetic")
    units = choose_units(options.providers, options.device)
    onnx_files.ensure_files(options.models, options.precisions, options.data_dir)
    device = strongest(units, Device.parse(options.device).index)
    shared = device.columns(f"onnxruntime {onnxruntime.__version__}")
    used = {name: UNITS[name].device for name in units} | {"cuda": shared["device"]}
    return {
        **shared,
        "provider": {name: {"device": used[name]} for name in units},
        "data": "synthetic",
        "found": {"providers": units},
    }


def choose_units(asked: list[str], device: str) -> list[str]:
    """The units to measure: those asked for, or for `auto` all that are there and of the device.

    Raises:
        UsageError: one is not there, or none is of the device.
    """
    import onnxruntime

    there = onnxruntime.get_available_providers()
    if "auto" not in asked:
        for name in asked:
            if UNITS[name].provider not in there:
                raise UsageError(
                    f"--providers={name}: ONNX Runtime {onnxruntime.__version__} has no "
                    f"{UNITS[name].provider} here, only {', '.join(there)}"
                )
        return asked
    kind = Device.parse(device).type
    found = [n for n, u in UNITS.items() if u.provider in there and kind in ("auto", u.device)]
    if not found:
        raise UsageError(f"--device={device}: ONNX Runtime's {', '.join(there)} do not reach it")
    return found


def strongest(units: list[str], index: int) -> Device:
    """The strongest device among the units, a card that of the number: it names the machine."""
    kinds = {UNITS[name].device for name in units}
    kind = next(kind for kind in ("cuda", "mps", "cpu") if kind in kinds)
    if kind != "cuda":
        return Device(kind)
    return Device(kind, index, *(harness.nvidia.nvidia_card(index) or ("CUDA", None)))


# One point


def measure(name: str, unit_name: str, precision: str, batch_size: int, options) -> dict:
    """The measured columns of a network on a unit."""
    path = onnx_files.file_path(options.data_dir, name, precision)
    index = Device.parse(options.device).index
    inputs = [
        onnx_files.random_inputs(name, batch_size, options.seed + number)
        for number in range(FRESH_INPUTS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        unit = ready(UNITS[unit_name], index, Path(folder))
        start = time.perf_counter()
        session = make_session(path, unit, batch_size)
        load_seconds = time.perf_counter() - start
        run = runner(session, unit)
        bindings = [bind(session, unit, values) for values in inputs]
        place = ("mps" if unit.is_core_ml else unit.device, index)
        watch, meter = Watch(*place), energy_meter(*place)
        seconds = options.max_seconds or SECONDS
        row = time_inferences(run, bindings, batch_size, seconds, watch, meter)
        row |= {"load_seconds": load_seconds, "exporter": onnx_files.read_stamp(path)["exporter"]}
        if unit.device != "cuda":  # whose memory is not the process'
            row["peak_memory_gb"] = harness.machine.peak_resident_gb()
        run(bindings[0])
        answer = bindings[0].copy_outputs_to_cpu()
        row |= proofs(name, precision, unit, batch_size, inputs[0], answer, options, Path(folder))
    network = onnx_files.NETWORKS[name]
    return row | {"gflop": network.gflop, "parameters": network.parameters}


def ready(unit: Unit, index: int, folder: Path) -> Unit:
    """The unit with what only this run knows: the card, or an empty cache, so that all compile."""
    if unit.provider == "CUDAExecutionProvider":
        return unit._replace(options=unit.options | {"device_id": str(index)})
    if unit.is_core_ml:
        return unit._replace(options=unit.options | {"ModelCacheDirectory": str(folder)})
    return unit


def make_session(path: Path, unit: Unit, batch_size: int, profile: Path | None = None):
    """A session on the unit with a fixed batch size.

    Args:
        profile: where to write ONNX Runtime's profile. Then only the optimizations that come before
            the graph is divided among providers are made, so that its nodes can be counted.

    Raises:
        UserError: the provider cannot be started here.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.add_free_dimension_override_by_name("batch", batch_size)
    settings.log_severity_level = 3
    if profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # Weights that are packed beforehand are missing among a node's inputs.
        settings.add_session_config_entry("session.disable_prepacking", "1")
    if unit.device == "cuda":
        onnxruntime.preload_dlls()  # of CUDA, where they came as Python packages, as PyTorch's do
    session = onnxruntime.InferenceSession(path, settings, [(unit.provider, unit.options)])
    session.disable_fallback()
    if unit.provider not in session.get_providers():
        raise UserError(
            f"{unit.provider} is installed but does not start here: the session has "
            f"{', '.join(session.get_providers())} only"
        )
    return session


def bind(session, unit: Unit, inputs: dict):
    """Inputs that lie where the unit reads them, outputs that stay there: no copy in the clock.

    Core ML has no memory of its own for ONNX Runtime; what it copies, it copies inside the clock.
    """
    from onnxruntime import OrtValue

    place = ("cuda", int(unit.options["device_id"])) if unit.device == "cuda" else ("cpu", 0)
    binding = session.io_binding()
    for name, values in inputs.items():
        binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(values, *place))
    for output in session.get_outputs():
        binding.bind_output(output.name, *place)
    return binding


def runner(session, unit: Unit) -> Callable:
    """A function that runs a binding, and returns when the outputs are there."""
    if unit.device != "cuda":
        return session.run_with_iobinding

    def run(binding):
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


# Timing


def time_inferences(
    run: Callable, bindings: list, batch_size: int, seconds: float, watch: Watch, energy=None
) -> dict:
    """Time `run` on the bindings in turn; returns the timing columns of a row.

    The first run is timed apart. An inference is that of one sample; a latency is that of a batch.
    The rate and its interval come from windows, as those of a training do (`harness.clock`).
    """
    now = time.perf_counter
    start = now()
    run(bindings[0])
    first = now() - start
    turn = itertools.cycle(bindings)
    start = now()
    for binding in itertools.islice(turn, WARMUP_RUNS):
        run(binding)
        if now() - start > WARMUP_SECONDS:
            break
    latencies, windows, joules = [], [], None
    watch.begin()
    if energy:
        energy.begin()
    start = opened = now()
    runs = 0
    for binding in turn:
        begin = now()
        run(binding)
        end = now()
        latencies.append(end - begin)
        runs += 1
        if end - opened >= WINDOW_SECONDS:
            samples = runs * batch_size
            windows.append(Window(runs, samples, samples, end - opened, whole=True))
            opened, runs = end, 0
            if end - start >= seconds and len(windows) > 1:
                break
    if energy:
        joules = energy.end()
    watch.end()
    rate, half_width = steady_rate(windows)
    row = {
        "inferences_per_second": rate,
        "inferences_per_second_ci95": half_width,
        **latency_columns(latencies),
        "first_inference_seconds": first,
        "sustained_ratio": sustained_ratio(windows),
        "runs_timed": len(latencies),
        **watch.columns(),
    }
    if joules:
        row["energy_joules_per_inference"] = joules / (batch_size * len(latencies))
        row["average_power_watts"] = joules / (end - start)
    return row


def latency_columns(latencies: list[float]) -> dict:
    """Median, 90th and 99th percentile in milliseconds; those that too few runs tell are None."""
    import numpy as np

    def percentile(percent: int, least: int) -> float | None:
        return 1000 * float(np.percentile(latencies, percent)) if len(latencies) >= least else None

    return {
        "latency_ms": percentile(50, 1),
        "latency_p90_ms": percentile(90, 10),
        "latency_p99_ms": percentile(99, 100),
    }


# Right, and where it ran


def proofs(
    name: str, precision: str, unit: Unit, batch_size: int, inputs: dict, answer: list, options,
    folder: Path,
) -> dict:  # fmt: skip
    """Columns that say whether the answer is the CPU's, and which part of the work the unit did.

    Raises:
        UserError: the answer is wrong.
    """

    def profiled(precision: str, unit: Unit) -> tuple[list, list]:
        # Core ML's cache stays that of the session that was measured.
        fixed = {n: value for n, value in unit.options.items() if n != "ModelCacheDirectory"}
        unit = unit._replace(options=fixed)
        path = onnx_files.file_path(options.data_dir, name, precision)
        session = make_session(path, unit, batch_size, profile=folder / "profile")
        outputs = session.run(None, inputs)
        return outputs, onnx_placement.read_profile(Path(session.end_profiling()))

    reference, on_cpu = profiled("fp32", UNITS["cpu"])
    right = same_answer(answer, reference, precision)
    if precision != "fp32":
        _, on_cpu = profiled(precision, UNITS["cpu"])
    placed = on_cpu if unit.provider == UNITS["cpu"].provider else profiled(precision, unit)[1]
    return right | onnx_placement.columns(placed, on_cpu, unit, folder)


def same_answer(answer: list, reference: list, precision: str) -> dict:
    """How far an answer is from the reference: of several outputs, the one that is farthest.

    Returns:
        cosine_similarity, and largest_relative_difference: the largest difference of two numbers
        as a part of the output's largest number.

    Raises:
        UserError: farther than `LIMITS` allow.
    """
    import numpy as np

    cosines, differences = [], []
    for ours, theirs in zip(answer, reference, strict=True):
        a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
        cosines.append(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        differences.append(np.abs(a - b).max() / np.abs(b).max())
    cosine, difference = float(np.min(cosines)), float(np.max(differences))
    lowest, largest = LIMITS[precision]
    # "Not at least", because an answer of NaN compares with nothing.
    if not (cosine >= lowest and difference <= largest):
        raise UserError(
            f"wrong answer: cosine similarity {cosine:.4f} to the CPU's fp32 output (at least "
            f"{lowest:g} is right), largest relative difference {difference:.3g} (at most "
            f"{largest:g})"
        )
    return {"cosine_similarity": cosine, "largest_relative_difference": difference}
