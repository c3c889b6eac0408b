"""What follows from a run's windows, as pure functions: rate, interval, time of an epoch."""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

PARTS = 20  # of a run, whose spread is its interval


class Window(NamedTuple):
    """Consecutive steps timed together, from one synchronization to the next."""

    steps: int
    samples: int
    work: int  # what the steps' time is proportional to: samples, or the padded tokens of texts
    seconds: float
    whole: bool  # False when a smaller, last batch of an epoch is among the steps
    paused: bool = False  # the process stood still meanwhile, or the machine slept

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds


class Run(NamedTuple):
    """What a clock has seen of a run; samples and seconds are without those of a soak."""

    windows: list[Window]
    batch_size: int
    samples_per_epoch: int  # with the rest that fills no batch
    epochs: int
    samples: int
    seconds: float
    first_samples: int
    first_step_seconds: float | None  # None where the process stood still meanwhile
    paused: bool


def timing_columns(run: Run) -> dict:
    """The timing columns of a row: seconds, and samples per second; None where unknown."""
    rate, half_width = steady_rate(run.windows)
    seconds, extrapolated = epoch_seconds(run, rate)
    return {
        "avg_time_per_epoch": seconds,
        "avg_time_per_epoch_ci95": seconds * half_width / rate if half_width else None,
        "extrapolated": extrapolated,
        "samples_per_second": rate,
        "samples_per_second_ci95": half_width,
        "first_step_seconds": run.first_step_seconds,
        "sustained_ratio": sustained_ratio(run.windows),
        "steps_timed": sum(window.steps for window in steady_windows(run.windows)),
        "steps_per_epoch": run.samples_per_epoch // run.batch_size,
    }


def epoch_seconds(run: Run, rate: float | None) -> tuple[float, bool]:
    """Seconds of one epoch of all its samples, and whether the steady rate says them."""
    samples = run.samples_per_epoch * run.epochs
    steps = run.samples_per_epoch // run.batch_size * run.epochs
    # The whole time of a run that stood still says nothing, but the rate of the rest does.
    if run.samples >= steps * run.batch_size and not (run.paused and rate):
        return run.seconds * samples / run.samples / run.epochs, False
    first = run.first_step_seconds or run.first_samples / rate
    return (first + (samples - run.first_samples) / rate) / run.epochs, True


def steady_windows(windows: list[Window]) -> list[Window]:
    """The windows made of full batches only; all of them where there are no such windows."""
    return [window for window in windows if window.whole] or windows


def steady_rate(windows: list[Window]) -> tuple[float | None, float | None]:
    """Samples per second over all steady windows, and the half-width of its 95 % interval.

    The half-width is Student's t times the standard deviation of the rates of the run's parts, some
    twenty of as many windows each (single ones where there are fewer than forty). It is not divided
    by the root of their number: a machine's speed wanders over tens of seconds (heat, clock
    frequency, neighbours), so that neighbouring windows are alike, and under such flicker noise a
    mean gets no more certain however long one averages (Allan, "Statistics of atomic frequency
    standards", Proceedings of the IEEE 54, 1966). On a machine without it the interval is wider
    than need be. None with fewer than two windows.

    Where samples differ in size, that is the spread of the work per second; the spread of the work
    per sample is added, divided by the root of the number of parts, because samples are shuffled.
    """
    windows = steady_windows(windows)
    if not windows:
        return None, None
    rate = rate_of(windows)
    if len(windows) < 2:
        return rate, None
    size = max(1, len(windows) // PARTS)
    # The oldest windows are left out where the number does not divide evenly.
    rest = windows[len(windows) % size :]
    parts = [rest[i : i + size] for i in range(0, len(rest), size)]
    speeds = relative_spread([speed_of(part) for part in parts])
    sizes = relative_spread([speed_of(part) / rate_of(part) for part in parts])
    return rate, rate * student_t(len(parts)) * math.hypot(speeds, sizes / len(parts) ** 0.5)


def student_t(count: int) -> float:
    """Half the width of a 95 % interval of so many values, in standard deviations."""
    from scipy.special import stdtrit  # scipy.stats takes a second more to import

    return float(stdtrit(count - 1, 0.975))


def mean_and_interval(values: list[float]) -> tuple[float, float | None]:
    """Mean, and half-width of its 95 % t interval; None for a single value."""
    if len(values) < 2:
        return values[0], None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), student_t(len(values)) * error


def rate_of(windows: list[Window]) -> float:
    """Samples per second over `windows`."""
    return sum(w.samples for w in windows) / sum(w.seconds for w in windows)


def speed_of(windows: list[Window]) -> float:
    """Work per second over `windows`."""
    return sum(w.work for w in windows) / sum(w.seconds for w in windows)


def relative_spread(values: list[float]) -> float:
    """Standard deviation over mean."""
    return statistics.stdev(values) / statistics.mean(values)


def sustained_ratio(windows: list[Window]) -> float | None:
    """Speed of the last third of the windows over the first third; None with fewer than three."""
    return last_over_first(steady_windows(windows), speed_of)


def last_over_first(parts: list, speed: Callable[[list], float]) -> float | None:
    """Speed of the last third of a run's parts over the first third; None with fewer than three."""
    third = len(parts) // 3
    return speed(parts[-third:]) / speed(parts[:third]) if third else None
