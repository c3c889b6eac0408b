"""Energy of the device that trains, through zeus (an optional package). Imports no ML framework.

zeus reads NVML on NVIDIA cards, IOReport on Apple silicon and RAPL on Linux processors. What it
counts differs, so joules compare only between machines of one kind: the card alone on CUDA; CPU,
GPU, Neural Engine and memory together on Apple silicon; package and memory on a Linux processor.
"""

import importlib.util
import multiprocessing
from collections.abc import Callable

from tqdm import tqdm

WINDOW = "training"
APPLE_PARTS = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "ane_mj", "dram_mj")


class EnergyMeter:
    """Counts joules from `begin` to `end`; a counter that fails costs the joules, not the run."""

    def __init__(self, monitor, joules: Callable[[object], float | None]):
        self.monitor = monitor
        self.joules = joules

    def begin(self) -> None:
        before = set(multiprocessing.active_children())
        if attempt(self.monitor.begin_window, WINDOW, sync_execution=False) is FAILED:
            self.monitor = None
        # zeus polls RAPL in processes that are endless, and that an exit would wait for.
        self.helpers = set(multiprocessing.active_children()) - before

    def end(self) -> float | None:
        """Joules since `begin`; None where this machine does not tell."""
        measured = FAILED
        if self.monitor:
            measured = attempt(self.monitor.end_window, WINDOW, sync_execution=False)
        for helper in self.helpers:
            helper.terminate()
        return None if measured is FAILED else self.joules(measured)


FAILED = object()


def attempt(function: Callable, *arguments, **keywords):
    """What `function` of zeus returns; FAILED, and a line on the terminal, where it raises."""
    try:
        return function(*arguments, **keywords)
    except Exception as error:  # noqa: BLE001 - drivers and zeus raise what they like
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        tqdm.write(f"energy is not measured, zeus fails: {reason}")
        return FAILED


def energy_meter(device_type: str, index: int = 0) -> EnergyMeter | None:
    """A meter of the device (`cpu`, `mps` or `cuda` number `index`); None without zeus.

    Also None where zeus cannot read its counters, which is said in a line.
    """
    if importlib.util.find_spec("zeus") is None:
        return None
    meter = attempt(start_meter, device_type, index)
    return None if meter is FAILED else meter


def start_meter(device_type: str, index: int) -> EnergyMeter:
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
