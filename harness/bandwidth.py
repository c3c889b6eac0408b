"""How fast generation reads memory, and how fast this machine can: the limit of a language model.

Every generated token needs all weights in use and its sequence's KV cache once.
"""

import json
from pathlib import Path

from harness.process import UserError


def gb_per_second(gb_per_step: float | None, steps_per_second: float | None) -> float | None:
    """GB/s that generation read; None where one of the two is not known."""
    return gb_per_step and steps_per_second and gb_per_step * steps_per_second


def measured_bandwidth(results_dir: Path, machine: str) -> float | None:
    """GB/s that selfcheck read from the machine's memory; None where it has not been run there.

    Raises:
        UserError: its report cannot be read.
    """
    path = results_dir / "selfcheck" / f"{machine}.json"
    try:
        return bandwidth_in(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a report of selfcheck.py ({error})") from None


def bandwidth_in(report: dict) -> float | None:
    """The GB/s in a report of selfcheck.py."""
    found = [
        float(each["value"])
        for each in report.get("findings", [])
        if each["check"].startswith("memory bandwidth")
    ]
    return found[0] if found else None
