"""Ratios of two things measured in one run, for the benchmark_*.py scripts and selfcheck.py."""

import statistics
import time
from collections.abc import Callable


def interleaved_ratio(ours: Callable[[], object], bare: Callable[[], object], pairs: int) -> float:
    """Median over interleaved pairs of the seconds of `bare` divided by those of `ours`.

    Both do the same work; 1 means that ours costs nothing, 0.98 that it is 2 % slower. Each side
    goes first in half of the pairs, so that drift of the machine falls on both.
    """
    bare()  # the first call of either allocates and compiles
    ours()
    ratios = []
    for pair in range(pairs):
        order = (bare, ours) if pair % 2 else (ours, bare)
        seconds = {side: timed(side) for side in order}
        ratios.append(seconds[bare] / seconds[ours])
    return statistics.median(ratios)


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call of `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
