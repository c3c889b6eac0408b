"""What NVIDIA's driver says of one card: power limit, heat, who else computes there.

Asked of `nvidia-smi`, which comes with every driver. What cannot be read is None, never guessed.
"""

import os
import re

import psutil

from harness.machine import output_of, parse_clock_reasons


def card_of(index: int) -> str | None:
    """What `nvidia-smi --id` calls the card that CUDA calls number `index`.

    None for a slice of a card (MIG), of which neither power nor heat is known, and where CUDA does
    not number the cards as the driver does.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [] if visible is None else visible.split(",")
    name = str(index) if visible is None else names[index].strip() if index < len(names) else ""
    if name.isdigit():
        return name if os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" else None
    return name if name.startswith("GPU-") else None


def ask(card: str, query: str) -> str:
    """The answer to a query such as `--query-gpu=power.limit`, without header and units."""
    return output_of("nvidia-smi", f"--id={card}", query, "--format=csv,noheader,nounits")


def power_limit(card: str) -> float | None:
    """Watts that the card may draw."""
    found = re.match(r"\d+(\.\d+)?", ask(card, "--query-gpu=power.limit").strip())
    return float(found[0]) if found else None


def thermal_state(card: str) -> str | None:
    """Why the card is held back: heat or power; `nominal` where it is not."""
    return parse_clock_reasons(ask(card, "--query-gpu=clocks_event_reasons.active"))


def other_processes(card: str) -> int:
    """How many processes that this one did not start compute on the card.

    In a container the driver may give numbers of processes outside, which say nothing here.
    """
    family = {os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))}
    listed = re.findall(r"^\d+$", ask(card, "--query-compute-apps=pid"), re.MULTILINE)
    return sum(psutil.pid_exists(pid) for pid in set(map(int, listed)) - family)


def driver_version() -> str | None:
    """Of NVIDIA's driver, such as `580.159`."""
    query = ("--query-gpu=driver_version", "--format=csv,noheader")
    found = re.match(r"\d[\d.]+", output_of("nvidia-smi", *query))
    return found and found[0]
