"""A model that is fitted as a whole, not step by step: fits repeated, their mean and interval.

Imports no framework. A fit's work is the same in every repetition, so that the spread of its
seconds is that of the machine.
"""

import os
import statistics
import time
from collections.abc import Callable

from tqdm import tqdm

import harness.cores
import harness.machine
from harness.disturbance import Watch
from harness.energy import energy_meter
from harness.experiment import Varied
from harness.process import UsageError, tell
from harness.windows import last_over_first, relative_spread, student_t

FITS = 5  # where --max_seconds does not say how long
PREDICT_SECONDS, LEAST_PREDICTIONS = 2.0, 3
WARM_UP_ROWS = 1000
# OpenMP, OpenBLAS, Apple's Accelerate.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

THREADS = Varied(
    "threads", "threads", "all", "{} threads", "threads", choices=("all",), numbers=True,
    in_label=True,
)  # fmt: skip
ROWS = Varied("rows", "rows", "100_000, 1_000_000", "{:,} rows", "rows")


def thread_count(threads: str) -> int:
    """`all` is every core that this process may use.

    Raises:
        UsageError: there are not that many.
    """
    cores = harness.cores.usable_cores()
    count = cores if threads == "all" else int(threads)
    if count > cores:
        raise UsageError(f"--threads={count}: this process may use {cores} cores; or take all")
    return count


def require_threads(walked: list[str]) -> None:
    """Raises UsageError where one of `--threads` is more than this process may use."""
    for threads in walked:
        thread_count(threads)


def use_threads(threads: str) -> int:
    """Hold OpenMP and BLAS to so many threads; returns their number.

    Call it before these libraries load, because they read this once. scikit-learn leaves out the
    second thread of a core unless it is told so here.
    """
    count = thread_count(threads)
    os.environ |= dict.fromkeys(THREAD_VARIABLES, str(count))
    return count


def threads_used(count: int) -> int:
    """`count`, or fewer where an OpenMP that the library has loaded starts no more threads."""
    from threadpoolctl import threadpool_info

    pools = [pool["filepath"] for pool in threadpool_info() if pool["user_api"] == "openmp"]
    return harness.cores.openmp_threads(count, pools)


def measure_fits(
    fit: Callable,
    predict: Callable,
    table,
    max_seconds: float | None,
    device_type: str = "cpu",
    index: int = 0,
):
    """Fit again and again, then predict again and again.

    One fit on few rows goes before, unmeasured: the first of a process starts the threads. Every
    fit that began within `max_seconds` is finished and counts, so that there is one at least.

    Args:
        fit: `fit(features, labels)`: the model, and the seconds of each of its parts by column.
        predict: `predict(model, features)`: what is predicted.
        table: a `harness.airline.Table`.
        max_seconds: None makes FITS fits.
        device_type: `cpu` or `cuda`: the device whose energy and load are read.
        index: number of a CUDA card.

    Returns:
        The measured columns of a row, the last model, and what it predicts of the held-out rows.
    """
    fit(table.features[:WARM_UP_ROWS], table.labels[:WARM_UP_ROWS])
    parts, model = [], None
    bar = tqdm(desc=f"{len(table.labels):,} rows", unit=" fits", position=1, leave=False,
               disable=None)  # fmt: skip
    energy, watch = energy_meter(device_type, index), Watch(device_type, index)
    if energy:
        energy.begin()
    watch.begin()
    start = time.perf_counter()
    while not enough(len(parts), seconds := time.perf_counter() - start, max_seconds):
        model = None  # its memory is free before the next one is made
        model, taken = fit(table.features, table.labels)
        parts.append(taken)
        bar.update()
        tell(f"{len(table.labels):,} rows: fitting", f"{len(parts)} fits")
    joules = energy.end() if energy else None
    watch.end()
    bar.close()
    row = watch.columns() | {
        "fits": len(parts),
        "peak_memory_gb": harness.machine.peak_resident_gb(),
    }
    for name in parts[0]:
        row |= mean_columns(name, [taken[name] for taken in parts])
    seconds_of_fits = [taken["fit_seconds"] for taken in parts]
    row["sustained_ratio"] = last_over_first(seconds_of_fits, lambda taken: 1 / sum(taken))
    if joules:
        row["energy_joules_per_fit"] = joules / len(parts)
        row["average_power_watts"] = joules / seconds
    limit = min(max_seconds or PREDICT_SECONDS, PREDICT_SECONDS)
    predictions, taken = timed_predictions(lambda: predict(model, table.held_out_features), limit)
    row |= mean_columns("predict_seconds", taken)
    return row, model, predictions


def enough(fits: int, seconds: float, max_seconds: float | None) -> bool:
    return fits > 0 and seconds >= max_seconds if max_seconds else fits >= FITS


def timed_predictions(predict: Callable, limit: float):
    """What `predict` returns, and the seconds of its repetitions, the first left out.

    Args:
        limit: seconds after which it is not repeated; LEAST_PREDICTIONS are made anyway.
    """
    predictions = predict()
    taken = []
    while len(taken) < LEAST_PREDICTIONS or sum(taken) < limit:
        start = time.perf_counter()
        predict()
        taken.append(time.perf_counter() - start)
    return predictions, taken


def mean_columns(name: str, values: list[float]) -> dict:
    """Mean and half-width of its 95 % interval, as `harness.windows.steady_rate` understands it.

    Student's t times the standard deviation, not divided by the root of their number. None with
    a single value.
    """
    mean, half_width = statistics.fmean(values), None
    if len(values) > 1:
        half_width = mean * relative_spread(values) * student_t(len(values))
    return {name: mean, f"{name}_ci95": half_width}


def rate_columns(name: str, work: float, row: dict, seconds: str) -> dict:
    """`work` per second with its interval, from a row's column of seconds."""
    rate, half_width = work / row[seconds], row[f"{seconds}_ci95"]
    return {name: rate, f"{name}_ci95": rate * half_width / row[seconds] if half_width else None}
