"""NVIDIA cards: one name for one card, whichever framework runs on it. Imports no ML framework."""

import ctypes
import math
import re

# Memory as cards are sold, in GB. A card reports somewhat less: the driver keeps a part, error
# correction takes another, and both differ from tool to tool (an H200 has 139.8 GiB by PyTorch and
# 140.4 GiB by nvidia-smi). But it never reports less than the next smaller size.
SIZES_SOLD = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 72, 80, 84, 94, 96, 128),
    *(141, 144, 180, 186, 192, 288),
)


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
    the machine's memory all of it. `nvidia-smi` knows the whole card in the first case, and
    nothing in the second.
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
