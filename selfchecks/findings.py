"""What a check saw, and how it is judged against its target."""

from typing import NamedTuple

from selfchecks.pairs import median_interval


class Finding(NamedTuple):
    """What a check saw, with the ends of its 95 % interval where there is one.

    The verdict is `ok`, `MISSED`, `unsure` (the target is missed, but lies within the interval), or
    empty for a figure that has no target.
    """

    check: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    target: str
    verdict: str


def at_least(
    check: str,
    value: float,
    target: float,
    unit: str = "ratio",
    interval: tuple[float, float] | None = None,
) -> Finding:
    return judge(check, value, interval, unit, f"at least {target:g}", lambda x: x >= target)


def at_most(
    check: str,
    value: float,
    target: float,
    unit: str,
    interval: tuple[float, float] | None = None,
) -> Finding:
    return judge(check, value, interval, unit, f"at most {target:g}", lambda x: x <= target)


def judge(check, value, interval, unit, target, holds) -> Finding:
    """The finding whose target holds where `holds(value)` does."""
    low, high = interval or (None, None)
    missed = "unsure" if interval and any(map(holds, interval)) else "MISSED"
    return Finding(check, value, low, high, unit, target, "ok" if holds(value) else missed)


def figure(check: str, value: float | None, unit: str) -> Finding:
    return Finding(check, value, None, None, unit, "", "")


def median_at_least(check: str, ratios: list[float], target: float) -> Finding:
    """Judges the median of ratios that were measured one after another."""
    median, *interval = median_interval(ratios)
    return at_least(check, median, target, interval=tuple(interval))


def median_off_by(check: str, ratios: list[float], percent: float) -> Finding:
    """Judges by how many percent the median of such ratios is off 1."""
    median, low, high = median_interval(ratios)
    ends = 100 * abs(low - 1), 100 * abs(high - 1)
    nearest = 0.0 if low <= 1 <= high else min(ends)
    return at_most(check, 100 * abs(median - 1), percent, "%", interval=(nearest, max(ends)))
