"""What timing an inference costs: ours against a bare loop, interleaved in one run.

The bare loop is onnxruntime_perf_test's: inputs bound once, then run after run, and the seconds of
all divided by their number. Run on MobileNetV3, whose inferences are the shortest of all.
"""

import itertools
import time
from pathlib import Path

from harness.disturbance import Watch
from harness.frameworks import onnx
from harness.twins import onnx_files
from selfchecks.pairs import interleaved_ratios

NAME = "mobilenetv3"


def bare_seconds(run, bindings: list, seconds: float) -> float:
    """Seconds of a run in a loop that does nothing else."""
    start = time.perf_counter()
    for runs, binding in enumerate(itertools.cycle(bindings), start=1):
        run(binding)
        if (passed := time.perf_counter() - start) >= seconds:
            return passed / runs


def timing_ratios(data_dir: Path, pairs: int = 30, seconds: float = 1.0) -> list[float]:
    """Of interleaved pairs, the bare loop's seconds of an inference divided by ours."""
    onnx_files.ensure_files([NAME], ["fp32"], data_dir)
    unit = onnx.UNITS["cpu"]
    session = onnx.make_session(onnx_files.file_path(data_dir, NAME, "fp32"), unit, 1)
    run = onnx.runner(session, unit)
    inputs = [onnx_files.random_inputs(NAME, 1, seed) for seed in range(onnx.FRESH_INPUTS)]
    bindings = [onnx.bind(session, unit, values) for values in inputs]

    def ours() -> float:
        row = onnx.time_inferences(run, bindings, 1, seconds, Watch())
        return 1 / row["inferences_per_second"]

    def bare() -> float:
        return bare_seconds(run, bindings, seconds)

    return interleaved_ratios(ours, bare, pairs, lambda side: side())
