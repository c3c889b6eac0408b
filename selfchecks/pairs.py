"""Ratios of two things measured in one run, for the modules beside this one."""

import statistics
import time
from collections.abc import Callable


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call of `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved_ratios(
    ours: Callable, bare: Callable, pairs: int, seconds_of: Callable = timed
) -> list[float]:
    """Of each of so many interleaved pairs, the seconds of `bare` divided by those of `ours`.

    Both do the same work; 1 means that ours costs nothing, 0.98 that it is 2 % slower. Each side
    goes first in half of the pairs, so that drift of the machine falls on both.

    Args:
        seconds_of: `seconds_of(side)` calls a side, and says how long it took.
    """
    bare()  # the first call of either allocates and compiles
    ours()
    ratios = []
    for pair in range(pairs):
        order = (bare, ours) if pair % 2 else (ours, bare)
        seconds = {side: seconds_of(side) for side in order}
        ratios.append(seconds[bare] / seconds[ours])
    return ratios


def shortest_seconds(work) -> float:
    """Seconds of the fastest of five runs of `work`, fewer when it is slow, after a warm-up."""
    work()
    seconds = []
    while len(seconds) < 5 and sum(seconds) < 5:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def median_interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and the ends of its 95 % interval, which are two of the ratios (sign test).

    The ends are NaN with fewer than six ratios: no interval of so few is that certain.
    """
    from scipy.stats import quantile_test

    interval = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return statistics.median(ratios), float(interval.low), float(interval.high)
