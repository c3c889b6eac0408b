"""NVIDIA cards: what their driver says of them, and one name for one card. Imports no ML framework.

The driver is asked through NVML, which comes with it. What cannot be read is None, never guessed.
"""

import ctypes
import functools
import math
import os
import re

import psutil

# Memory as cards are sold, in GB. A card reports somewhat less: the driver keeps a part, error
# correction takes another, and both differ from tool to tool (an H200 has 139.8 GiB by PyTorch and
# 140.4 GiB by NVML). But it never reports less than the next smaller size.
SIZES_SOLD = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 72, 80, 84, 94, 96, 128),
    *(141, 144, 180, 186, 192, 288),
)
# Bits of nvmlClocksEventReasons in NVIDIA's nvml.h that mean heat or power, not choice.
CLOCK_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


@functools.cache
def nvml():
    """The module `pynvml`, ready to be asked; None where no NVIDIA driver answers."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def ask(function: str, *arguments):
    """What a function of NVML returns; None without a driver, a card to ask of, or an answer."""
    if None in arguments or (library := nvml()) is None:
        return None
    try:
        return getattr(library, function)(*arguments)
    except (library.NVMLError, library.NVMLLibraryMismatchError):  # one of them of an old driver
        return None


def driver_version() -> str | None:
    """Of NVIDIA's driver, such as `580.159`."""
    return ask("nvmlSystemGetDriverVersion")


def has_card() -> bool:
    """Whether the driver knows any card, visible to CUDA or not."""
    return bool(ask("nvmlDeviceGetCount"))


def visible_name(index: int) -> str:
    """Number or UUID of the card that CUDA calls number `index`; empty where it sees none."""
    every = ",".join(map(str, range(index + 1)))
    names = os.environ.get("CUDA_VISIBLE_DEVICES", every).split(",")
    return names[index].strip() if index < len(names) else ""


def device_of(index: int):
    """NVML's handle of the card, or slice of one (MIG), that CUDA calls number `index`; or None.

    CUDA counts as NVML does where CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    name = visible_name(index)
    if name.isdecimal():
        device = ask("nvmlDeviceGetHandleByIndex", int(name))
    else:
        device = ask("nvmlDeviceGetHandleByUUID", name)
    # Of a card that is divided, CUDA takes the first slice.
    return ask("nvmlDeviceGetMigDeviceHandleByIndex", device, 0) or device


def card_of(index: int):
    """NVML's handle of the card that CUDA calls number `index`; or None.

    None also for a slice of a card, of which neither power nor heat is known, and where CUDA does
    not number the cards as NVML does.
    """
    in_order = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if visible_name(index).isdecimal() and not in_order:
        return None
    device = device_of(index)
    return None if ask("nvmlDeviceIsMigDeviceHandle", device) else device


def nvidia_card(index: int = 0) -> tuple[str, int | None] | None:
    """Name and bytes of what CUDA calls number `index`, a card or a slice; None where none is."""
    name = ask("nvmlDeviceGetName", device_of(index))
    return None if name is None else (name, card_bytes(index))


def power_limit(card) -> float | None:
    """Watts that the card may draw."""
    milliwatts = ask("nvmlDeviceGetPowerManagementLimit", card)
    return None if milliwatts is None else milliwatts / 1000


def thermal_state(card) -> str | None:
    """Why the card is held back: heat or power; `nominal` where it is not."""
    active = ask("nvmlDeviceGetCurrentClocksEventReasons", card)
    if active is None:
        return None
    return ", ".join(name for bit, name in CLOCK_REASONS.items() if active & bit) or "nominal"


def other_processes(card) -> int:
    """How many processes that this one did not start compute on the card.

    In a container the driver may give numbers of processes outside, which say nothing here.
    """
    family = {os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))}
    listed = {process.pid for process in ask("nvmlDeviceGetComputeRunningProcesses", card) or ()}
    return sum(psutil.pid_exists(pid) for pid in listed - family)


def card_name(name: str, size: int | None) -> str:
    """The name of a card with its memory, such as `NVIDIA TITAN RTX 24GB`.

    The memory is left out where the name has it already. A MIG slice of a card is named as a
    slice: by its own name (`NVIDIA A100-SXM4-40GB MIG 1g.5gb`), else by its memory beside that of
    the card.

    Args:
        size: of the memory in bytes, None if unknown.
    """
    named = re.search(r"(\d+)GB", name)
    if size is None or "MIG" in name:
        return name
    sold = gigabytes_sold(size)
    return name if named and int(named[1]) == sold else f"{name} {sold}GB"


def gigabytes_sold(size: int) -> int:
    """The memory with which a card that reports so many bytes is sold: the next larger size."""
    gibibytes = size / 2**30
    return next((sold for sold in SIZES_SOLD if gibibytes <= sold), math.ceil(gibibytes))


def card_bytes(index: int) -> int | None:
    """Memory of the CUDA device of that number, as the driver tells it; None without a driver.

    PyTorch and llama.cpp report the same number: of a MIG slice its share, of a card that shares
    the machine's memory all of it. In the second case NVML knows nothing (GB10, Jetson) or a small
    part, so a card would have two names.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, size = ctypes.c_int(), ctypes.c_size_t()
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    )
    return None if failed else size.value


def has_bf16(capability: tuple[int, int]) -> bool:
    """Whether cards of that compute capability compute in bf16: from Ampere (8.0) on.

    Older ones, such as T4 and V100, are made to by float32 arithmetic.
    """
    return tuple(capability) >= (8, 0)
