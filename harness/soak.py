"""Holding a device at full load until its speed no longer changes: what it does for hours.

A machine that starts cold is faster for some minutes, one without a fan by a third. Rows say which
of the two they are, because the two do not compare.
"""

import statistics
from collections import deque
from collections.abc import Callable

COLD, SUSTAINED = "cold", "sustained"  # of the column `thermal_protocol`
SPAN = 120.0  # seconds whose trend is looked at: over fewer, noise alone looks like one
STEADY = 0.01  # of the speed, per minute: a trend below that is none
KNOWN = 0.02  # per minute: a slope with a larger standard error says nothing
LONGEST = 600.0  # seconds; a machine that is not steady by then is said to be not
UNSTEADY = "still changing speed"  # how that is said


class Soak:
    """Is told the speed of one window after the other, until `over` says that they are steady."""

    def __init__(self):
        self.speeds = deque()  # (seconds on any clock, speed) of the last SPAN
        self.begun = None
        self.seconds = 0.0
        self.steady = False

    def over(self, time: float, speed: float) -> bool:
        """Whether what is measured from now on is sustained, or the waiting too long."""
        self.begun = time if self.begun is None else self.begun
        self.seconds = time - self.begun
        self.speeds.append((time, speed))
        while time - self.speeds[0][0] > SPAN:
            self.speeds.popleft()
        whole = self.seconds >= SPAN and len(self.speeds) > 2
        if whole:
            slope, error = trend(*zip(*self.speeds, strict=True))
            self.steady = abs(slope) < STEADY and error < KNOWN
        return self.steady or self.seconds >= LONGEST

    def columns(self) -> dict:
        """The column of a row, and what was unusual, None where nothing was."""
        unusual = None if self.steady else f"{UNSTEADY} after {self.seconds:.0f} s"
        return {"soak_seconds": self.seconds, "disturbance": unusual}


def trend(times: tuple[float, ...], speeds: tuple[float, ...]) -> tuple[float, float]:
    """How the speed changes in a minute, as a part of itself, and the standard error of that.

    The slope of a straight line, by least squares.
    """
    slope, intercept = statistics.linear_regression(times, speeds)
    rest = [speed - slope * t - intercept for t, speed in zip(times, speeds, strict=True)]
    variance = sum(r * r for r in rest) / (len(rest) - 2)
    spread = statistics.pvariance(times) * len(times)
    per_minute = 60 / statistics.mean(speeds)
    return per_minute * slope, per_minute * (variance / spread) ** 0.5


def add_flag(add: Callable) -> None:
    """`--soak`, with the `add_argument` of a command line; its value is `thermal_protocol`."""
    add("--soak", dest="thermal_protocol", action="store_const", const=SUSTAINED, default=COLD,
        help="first keep the device busy until heat slows it no more")  # fmt: skip


def soak_for(options) -> Soak | None:
    """As the command line wants it: None for a machine measured as it is."""
    return Soak() if options.thermal_protocol == SUSTAINED else None
