"""Ratios of two things measured in one run, for selfcheck.py and the modules beside this one."""

import statistics
import time
from collections.abc import Callable


def interleaved_ratios(
    ours: Callable[[], object], bare: Callable[[], object], pairs: int
) -> list[float]:
    """Of each of so many interleaved pairs, the seconds of `bare` divided by those of `ours`.

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
    return ratios


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call of `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and the ends of its 95 % interval, which are two of the ratios (sign test).

    The ends are NaN with fewer than six ratios: no interval of so few is that certain.
    """
    from scipy.stats import quantile_test

    interval = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return statistics.median(ratios), float(interval.low), float(interval.high)


def in_words(ratios: list[float]) -> str:
    """Such as `0.987 (0.962 to 1.01)`: the median and its 95 % interval."""
    median, low, high = median_interval(ratios)
    return f"{median:.3g} ({low:.3g} to {high:.3g})"
