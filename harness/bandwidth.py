"""How fast generation reads memory, and how fast this machine can: the limit of a language model.

Every generated token needs all weights in use and its sequence's KV cache once.
"""

import json
from pathlib import Path

from harness.process import UserError


def gb_per_second(gb_per_step: float | None, steps_per_second: float | None) -> float | None:
    """GB/s that generation read; None where one of the two is not known."""
    return gb_per_step and steps_per_second and gb_per_step * steps_per_second


def share_of(bandwidth: float | None, row: dict) -> dict:
    """The column that says how much of the bandwidth a row reached; none where that is unknown."""
    read = row.get("bandwidth_gb_per_second")
    return {"bandwidth_percent": 100 * read / bandwidth} if bandwidth and read else {}


def measured_bandwidth(results_dir: Path, machine: str) -> float | None:
    """GB/s that selfcheck read from the machine's memory; None where it has not been run there.

    Raises:
        UserError: its report cannot be read.
    """
    path = results_dir / "selfcheck" / f"{machine}.json"
    try:
        findings = json.loads(path.read_text())["findings"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a report of selfcheck.py ({error})") from None
    found = [each["value"] for each in findings if each["check"].startswith("memory bandwidth")]
    return found[0] if found else None
