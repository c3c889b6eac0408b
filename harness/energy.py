"""Energy of the device that trains, through zeus (an optional package). Imports no ML framework.

zeus reads NVML on NVIDIA cards, IOReport on Apple silicon and RAPL on Linux processors. What it
counts differs, so joules compare only between machines of one kind: the card alone on CUDA; CPU,
GPU, Neural Engine and memory together on Apple silicon; package and memory on a Linux processor.
"""

import importlib.util
from collections.abc import Callable

WINDOW = "training"
APPLE_PARTS = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "ane_mj", "dram_mj")


class EnergyMeter:
    """Counts joules from `begin` to `end`."""

    def __init__(self, monitor, joules: Callable[[object], float | None]):
        self.monitor = monitor
        self.joules = joules

    def begin(self) -> None:
        self.monitor.begin_window(WINDOW, sync_execution=False)

    def end(self) -> float | None:
        """Joules since `begin`; None where this machine does not tell."""
        return self.joules(self.monitor.end_window(WINDOW, sync_execution=False))


def energy_meter(device_type: str, index: int = 0) -> EnergyMeter | None:
    """A meter of the device (`cpu`, `mps` or `cuda` number `index`); None without zeus."""
    if importlib.util.find_spec("zeus") is None:
        return None
    from zeus.monitor import ZeusMonitor

    if device_type == "cuda":
        monitor = ZeusMonitor(gpu_indices=[index], cpu_indices=[])
        return EnergyMeter(monitor, lambda measured: sum(measured.gpu_energy.values()) or None)
    return EnergyMeter(ZeusMonitor(gpu_indices=[]), processor_joules)


def processor_joules(measured) -> float | None:
    """Joules of a chip in a zeus measurement: of an Apple chip if there is one, else of RAPL."""
    if measured.soc_energy is not None:
        parts = [getattr(measured.soc_energy, name, None) for name in APPLE_PARTS]
        return sum(part for part in parts if part is not None) / 1000 or None
    packages = (measured.cpu_energy or {}).values()
    memory = (measured.dram_energy or {}).values()
    return sum(packages) + sum(memory) or None
