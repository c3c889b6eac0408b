"""What timing an inference costs: ours against a bare loop, interleaved in one run.

    python -m selfchecks.onnx

The bare loop is onnxruntime_perf_test's: inputs bound once, then run after run, and the seconds of
all divided by their number. Run on MobileNetV3, whose inferences are the shortest of all.
"""

import argparse
import itertools
import time
from pathlib import Path

from harness.arguments import path_name
from harness.disturbance import Watch
from harness.frameworks import onnx
from harness.twins import onnx_files
from selfchecks.pairs import in_words

NAME = "mobilenetv3"


def bare_rate(run, bindings: list, seconds: float) -> float:
    """Runs per second of a loop that does nothing else."""
    start = time.perf_counter()
    for runs, binding in enumerate(itertools.cycle(bindings), start=1):
        run(binding)
        if (passed := time.perf_counter() - start) >= seconds:
            return runs / passed


def timing_ratios(data_dir: Path, pairs: int = 30, seconds: float = 1.0) -> list[float]:
    """Of interleaved pairs, our inferences per second divided by the bare loop's."""
    onnx_files.ensure_files([NAME], ["fp32"], data_dir)
    unit = onnx.UNITS["cpu"]
    session = onnx.make_session(onnx_files.file_path(data_dir, NAME, "fp32"), unit, 1)
    run = onnx.runner(session, unit)
    inputs = [onnx_files.random_inputs(NAME, 1, seed) for seed in range(onnx.FRESH_INPUTS)]
    bindings = [onnx.bind(session, unit, values) for values in inputs]
    sides = {
        "ours": lambda: onnx.time_inferences(run, bindings, 1, seconds, Watch())[
            "inferences_per_second"
        ],
        "bare": lambda: bare_rate(run, bindings, seconds),
    }
    sides["bare"]()
    ratios = []
    for pair in range(pairs):
        order = ("ours", "bare") if pair % 2 else ("bare", "ours")
        rates = {side: sides[side]() for side in order}
        ratios.append(rates["ours"] / rates["bare"])
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=path_name, default=Path("data"))
    print(f"timing of inferences: {in_words(timing_ratios(parser.parse_args().data_dir))}")
