"""Times one answer of a language model, and sees what it cost and what disturbed it meanwhile."""

import contextlib
import time
from collections.abc import Iterator

import psutil


@contextlib.contextmanager
def stopwatch(meter=None) -> Iterator[dict]:
    """Times the block; what it saw is in the yielded dictionary once the block has ended.

    Keys: `total_time` (seconds), `other_load_percent` (what other programs took of all cores; None
    for less than half a second), and `joules` where a meter tells.

    Args:
        meter: a `harness.energy.EnergyMeter` of the device, or None.
    """
    seen = {}
    others = seconds_of_others()
    if meter:
        meter.begin()
    start = time.perf_counter()
    yield seen
    seconds = time.perf_counter() - start
    if meter:
        seen["joules"] = meter.end()
    taken = max(0.0, seconds_of_others() - others) / (seconds * psutil.cpu_count())
    seen["other_load_percent"] = 100 * taken if seconds >= 0.5 else None
    seen["total_time"] = seconds


def seconds_of_others() -> float:
    """Processor time that other programs, and other guests of the host, have taken so far."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(machine, name, 0.0) for name in busy) - own.user - own.system


def watched_columns(seen: dict, tokens: int) -> dict:
    """The columns of what a stopwatch saw, with the joules as those per token, and as watts."""
    columns = {name: value for name, value in seen.items() if name != "joules"}
    if seen.get("joules") and tokens:
        columns["energy_joules_per_token"] = seen["joules"] / tokens
        columns["average_power_watts"] = seen["joules"] / seen["total_time"]
    return columns
