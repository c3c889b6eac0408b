"""Times one answer of a language model, and what it cost."""

import contextlib
import time
from collections.abc import Iterator


@contextlib.contextmanager
def stopwatch(meter=None) -> Iterator[dict]:
    """Times the block; what it saw is in the yielded dictionary once the block has ended.

    Keys: `total_time` (seconds), and `joules` where a meter tells.

    Args:
        meter: a `harness.energy.EnergyMeter` of the device, or None.
    """
    seen = {}
    if meter:
        meter.begin()
    start = time.perf_counter()
    yield seen
    seconds = time.perf_counter() - start
    if meter:
        seen["joules"] = meter.end()
    seen["total_time"] = seconds


def watched_columns(seen: dict, tokens: int) -> dict:
    """The columns of what a stopwatch saw, with the joules as those per token, and as watts."""
    columns = {name: value for name, value in seen.items() if name != "joules"}
    if seen.get("joules") and tokens:
        columns["energy_joules_per_token"] = seen["joules"] / tokens
        columns["average_power_watts"] = seen["joules"] / seen["total_time"]
    return columns
