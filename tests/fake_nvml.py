"""A pynvml that stands in for the real one: cards, slices of them, and what a driver does not tell.

Its errors are those of nvidia-ml-py, and it has no function which that one lacks.
"""

import functools
import sys
import types
from dataclasses import dataclass

import pynvml

import harness.nvidia

TOLD = {  # by function: what is told of a card, None where it is not supported
    "nvmlDeviceGetName": lambda card: card.name,
    "nvmlDeviceGetPowerManagementLimit": lambda card: card.milliwatts,
    "nvmlDeviceGetCurrentClocksEventReasons": lambda card: card.reasons,
    "nvmlDeviceGetComputeRunningProcesses": lambda card: (
        card.processes and [types.SimpleNamespace(pid=pid) for pid in card.processes]
    ),
    "nvmlDeviceIsMigDeviceHandle": lambda card: int(card.uuid.startswith("MIG-")),
}


@dataclass
class Card:
    """A card, or a slice of one, and its own handle."""

    name: str = "NVIDIA TITAN RTX"
    uuid: str = "GPU-0c0a"
    milliwatts: int | None = 280_000
    reasons: int | None = 0
    processes: tuple[int, ...] | None = ()
    slices: tuple["Card", ...] = ()


def install(monkeypatch, *cards, version="580.159.03", start=None) -> list:
    """Let NVML know these cards, all visible, in the test's process; returns a list of its starts.

    Args:
        start: the error of nvmlInit, such as that of a machine without a driver.
    """
    everything = [*cards, *(one for card in cards for one in card.slices)]
    starts = []

    def init():
        starts.append(start)
        if start:
            raise start

    def at(there, index):
        if index >= len(there):
            raise pynvml.NVMLError_NotFound()
        return there[index]

    def answer(tell, card):
        told = tell(card)
        if told is None:
            raise pynvml.NVMLError_NotSupported()
        return told

    functions = {
        "nvmlInit": init,
        "nvmlSystemGetDriverVersion": lambda: version,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: at(cards, index),
        "nvmlDeviceGetHandleByUUID": lambda uuid: at(
            [card for card in everything if card.uuid == uuid], 0
        ),
        "nvmlDeviceGetMigDeviceHandleByIndex": lambda card, index: at(card.slices, index),
        **{name: functools.partial(answer, tell) for name, tell in TOLD.items()},
    }
    assert functions.keys() <= vars(pynvml).keys()
    errors = {name: value for name, value in vars(pynvml).items() if name.startswith("NVMLError")}
    errors["NVMLLibraryMismatchError"] = pynvml.NVMLLibraryMismatchError
    monkeypatch.setitem(sys.modules, "pynvml", types.SimpleNamespace(**functions, **errors))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fresh = functools.cache(harness.nvidia.nvml.__wrapped__)
    monkeypatch.setattr(harness.nvidia, "nvml", fresh)
    return starts
