"""A device, whichever framework computes on it: chosen, named in a row, its precision proven.

Imports no ML framework.
"""

import math
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass

import harness.machine
from harness.nvidia import card_name, has_bf16
from harness.process import UsageError

KINDS = ("mps", "cuda", "cpu")  # of --device: `auto` takes the first one that is there
FINE = 1 + 2**-12  # a float32; in TF32, with 10 bits after the point, it is 1


@dataclass(frozen=True)
class Device:
    """`cpu`, `mps` (the GPU of an Apple chip) or `cuda`, with the number of the card.

    llama.cpp has names of its own: `metal` for `mps`, `vulkan` and others for a card.
    """

    type: str
    index: int = 0
    name: str | None = None  # of a card
    memory_bytes: int | None = None  # of a card; None where nothing tells
    capability: tuple[int, int] | None = None  # of an NVIDIA card to compute
    count: int = 1  # how many of them train together

    @classmethod
    def parse(cls, text: str) -> "Device":
        """What `--device` names, such as `cuda:1`; without a number it is the first one."""
        kind, _, number = text.partition(":")
        return cls(kind, int(number or 0))

    def __str__(self) -> str:
        return f"{self.type}:{self.index}" if self.index else self.type

    def columns(self, framework: str) -> dict:
        """The machine columns of a row, of the device that is really used."""
        machine = harness.machine.machine_facts()
        return {
            **machine,
            "device": f"{self.type} ({self.name})" if self.name else self.type,
            "machine": self.tag(machine),
            "framework": framework,
        }

    def tag(self, machine: dict) -> str:
        """The name that results are filed under, e.g. `Apple_M3_Pro_18GB_14_GPU_Cores`.

        Args:
            machine: what `machine_facts` returned.
        """
        on_mac, on_apple_gpu = platform.system() == "Darwin", self.type in ("mps", "metal")
        if self.type == "cpu" or on_apple_gpu:
            kind = "GPU_Cores" if on_apple_gpu else "CPU_Cores" if on_mac else "Cores"
            cores = machine["gpu_cores" if on_apple_gpu else "cpu_cores"]
            count = f"{cores}_{kind}" if cores else ""
            memory = gigabytes(machine["memory_gb"] * 1e9)
            chip = machine["chip"] or platform.machine()
            parts = [chip, memory, count] if on_mac else [chip, count, memory]
        else:
            parts = [card_name(self.name, self.memory_bytes)]
        return re.sub(r"[^A-Za-z0-9.-]+", "_", "_".join(filter(None, parts))).strip("_")


def gigabytes(size: float) -> str:
    """Memory as it is sold: of 24 GB the system sees slightly less than 24 * 2**30 bytes."""
    return f"{math.ceil(round(size) / 2**30)}GB"


# Choosing


def choose(name: str, seen: dict[str, int], framework: str, hint: str = "") -> Device:
    """The GPU, or else the CPU, for `auto`; else the device of that name.

    Args:
        seen: how many devices of each kind the framework sees.
        framework: with its version.
        hint: what helps where it does not see the device.

    Raises:
        UsageError: it does not.
    """
    device = Device.parse(first_kind(seen) if name == "auto" else name)
    if device.index >= seen.get(device.type, 0):
        hint = f"; {hint}" if hint else ""
        raise UsageError(f"--device={name}: {framework} sees no such device here{hint}")
    return device


def choose_several(kind: str, count: int | str, seen: dict[str, int]) -> Device:
    """So many devices of a kind, or `all` of them, that train together.

    Raises:
        UsageError: there are not that many, or `kind` names a single one.
    """
    if ":" in kind:
        raise UsageError(f"--num_devices: --device={kind} names one device; take cuda or cpu")
    kind = first_kind(seen) if kind == "auto" else kind
    there = seen.get(kind, 0)
    count = there if count == "all" else count
    if not 0 < count <= there:
        raise UsageError(f"--num_devices={count}: there are {there} of {kind} on this machine")
    return Device(kind, count=count)


def first_kind(seen: dict[str, int]) -> str:
    return next((kind for kind in KINDS if seen.get(kind)), "cpu")


# Precision


def prove_precision(
    device: Device, precision: str, products: Callable[[], list], errors: tuple = ()
) -> None:
    """Raises UsageError unless `device` itself computes in `precision`.

    Args:
        products: computes a matrix product and a convolution in that precision, whose every element
            is FINE if nothing is rounded off; large enough for the kernels that a training uses.
        errors: what it raises where the device cannot do it.
    """
    if precision == "bf16" and device.capability and not has_bf16(device.capability):
        raise UsageError(
            f"--precision=bf16: {device.name} has no bf16 arithmetic, and would make do with "
            "float32; use fp16 or fp32"
        )
    try:
        results = products()
    except errors:
        raise UsageError(f"--precision={precision}: {device.type} cannot do it; use fp32") from None
    if precision == "fp32" and any(abs(result - FINE).max() > 2**-14 for result in results):
        fix = "; " if device.type == "mps" else ": unset NVIDIA_TF32_OVERRIDE, or "
        raise UsageError(
            f"--precision=fp32: {device.type} rounds float32 as TF32 does, and will not stop{fix}"
            "measure with --precision=bf16"
        )
