"""A machine that stays awake while it measures, and how a standstill is noticed.

Ctrl-Z stops the processes but not the clock that times them; a closed lid stops both.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

SLEPT_SECONDS = 1.0  # the clocks differ by microseconds otherwise
_stops = 0


def stay_awake() -> None:
    """Keep a Mac from idle sleep as long as this process lives."""
    if sys.platform == "darwin":
        # -i: no idle sleep, -m: the disk neither; it ends with the process (-w).
        with contextlib.suppress(OSError):
            subprocess.Popen(["caffeinate", "-i", "-m", "-w", str(os.getpid())])


def count_stops() -> None:
    """From now on notice that this process was stopped, by Ctrl-Z or otherwise, and went on."""

    def count(*_) -> None:
        global _stops
        _stops += 1

    signal.signal(signal.SIGCONT, count)
    # Calls into the system that it interrupts go on by themselves.
    signal.siginterrupt(signal.SIGCONT, False)


def asleep_seconds() -> float:
    """Seconds that the machine slept since it was started."""
    if sys.platform == "darwin":
        counting, pausing = time.CLOCK_MONOTONIC_RAW, time.CLOCK_UPTIME_RAW
    else:
        counting, pausing = time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC
    return time.clock_gettime(counting) - time.clock_gettime(pausing)


class Pauses:
    """Tells whether the process was stopped, or the machine slept, since it was last asked."""

    def __init__(self):
        self.stops, self.asleep = _stops, asleep_seconds()

    def since_last(self) -> bool:
        stops, asleep = self.stops, self.asleep
        self.stops, self.asleep = _stops, asleep_seconds()
        return self.stops > stops or self.asleep - asleep > SLEPT_SECONDS
