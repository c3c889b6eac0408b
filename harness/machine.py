"""Which machine this is. Imports no ML framework; what cannot be read is None, never guessed."""

import contextlib
import json
import os
import platform
import re
import resource
import sys
from pathlib import Path

import psutil

from harness.cores import physical_cores, usable_memory
from harness.cores import usable_cores as usable_cores  # what a pipeline asks for its workers
from harness.system import output_of, sysctl, text_of

ROOT = Path("/")


def machine_facts() -> dict:
    """The machine columns that need no framework: chip, cores, memory (GB = 1e9 bytes), os, ...

    Cores and memory are those that this process may use: a container with four of 64 cores is a
    machine of four cores, and measures like one.
    """
    return {
        "chip": chip_name(),
        "cpu_cores": physical_cores(),
        "gpu_cores": apple_gpu_cores(),
        "memory_gb": usable_memory() / 1e9,
        "power": power_source(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def chip_name() -> str | None:
    """The processor's name, without trademark signs and clock rate.

    Clouds hide the model: `AMD EPYC`, `Intel(R) Xeon(R) CPU @ 2.20GHz` are many generations, which
    family, model and stepping tell apart. Boards with ARM cores name themselves, or their core.
    """
    # py-cpuinfo knows nothing of macOS versions newer than itself.
    brand = sysctl("machdep.cpu.brand_string") if platform.system() == "Darwin" else ""
    if brand:
        return without_noise(brand)
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    brand = without_noise(info.get("brand_raw") or "")
    if any(character.isdigit() for character in brand):
        return brand
    # Of an ARM core there is no family; the model is only its revision.
    numbers = [f"{name} {info[name]}" for name in ("family", "model", "stepping") if name in info]
    told = [" ".join(numbers)] if "family" in info else [board_name()]
    return " ".join(filter(None, [brand or info.get("vendor_id_raw"), *told])) or None


def without_noise(brand: str) -> str:
    noise = (
        r"\((R|TM)\)|\bCPU\b|@.*|\d+-Core Processor|\bProcessor\b|with Radeon.*"
        r"|^(-|(ARMv|AArch64).*)$"  # where Linux does not know an ARM core's name
    )
    return " ".join(re.sub(noise, " ", brand).split())


def board_name(root: Path = ROOT) -> str | None:
    """What else tells an ARM machine: its board, its maker's product, or the number of its core."""
    if board := text_of(root / "proc/device-tree/model"):
        return board
    names = [text_of(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name")]
    processor = text_of(root / "proc/cpuinfo")
    core = re.findall(r"^CPU (implementer|part)\s*: (0x\w+)$", processor, re.MULTILINE)[:2]
    parts = [*names, *(f"{name} {number}" for name, number in core)]
    return " ".join(filter(None, parts)) or None


def apple_gpu_cores() -> int | None:
    """GPU cores of an Apple chip, from `system_profiler`; None elsewhere."""
    if platform.system() != "Darwin":
        return None
    return parse_gpu_cores(output_of("system_profiler", "SPDisplaysDataType", "-json"))


def parse_gpu_cores(report: str) -> int | None:
    """The core count in the JSON that `system_profiler SPDisplaysDataType -json` prints.

    Display adapters are in the list too; they have no cores.
    """
    try:
        adapters = json.loads(report)["SPDisplaysDataType"]
        return next((int(one["sppci_cores"]) for one in adapters if "sppci_cores" in one), None)
    except (ValueError, KeyError, TypeError):
        return None


def power_source() -> str | None:
    """`ac` or `battery`, with `_low_power` where macOS saves power; None without a battery."""
    if platform.system() != "Darwin":
        return linux_power_source()
    battery = psutil.sensors_battery()
    source = battery and ("ac" if battery.power_plugged else "battery")
    low = parse_low_power_mode(output_of("pmset", "-g"))
    return f"{source or 'ac'}_low_power" if low else source


def linux_power_source(root: Path = ROOT) -> str | None:
    """`ac` or `battery`; None without a battery of the machine's own.

    That of a wireless mouse or headset has the scope `Device` (sysfs-class-power).
    """
    supplies = (root / "sys/class/power_supply").glob("*")
    batteries = [
        text_of(supply / "status")
        for supply in supplies
        if text_of(supply / "type") == "Battery" and text_of(supply / "scope") != "Device"
    ]
    if not batteries:
        return None
    return "battery" if "Discharging" in batteries else "ac"


def parse_low_power_mode(report: str) -> bool | None:
    """Whether `pmset -g` says that low power mode is on; None where it does not say."""
    found = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d)\s*$", report, re.MULTILINE)
    return found and found[1] == "1"


def thermal_state() -> str | None:
    """What macOS says about a Mac's heat: `nominal`, or what it limits; None elsewhere."""
    if platform.system() != "Darwin":
        return None
    return parse_pmset_therm(output_of("pmset", "-g", "therm"))


def parse_pmset_therm(report: str) -> str | None:
    """The CPU speed limit that `pmset -g therm` prints, in percent, if it is under 100."""
    found = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", report)
    if found:
        return "nominal" if found[1] == "100" else f"processor limited to {found[1]} %"
    return "nominal" if "No thermal warning level has been recorded" in report else None


def other_load(seconds: float = 1.0) -> tuple[float, str | None]:
    """How busy other programs keep the processor, in percent of all cores, and the busiest one."""
    others = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    for process in others:
        with contextlib.suppress(psutil.Error):
            process.cpu_percent()  # starts its count
    percent = psutil.cpu_percent(interval=seconds)
    busiest, name = 0.0, None
    for process in others:
        with contextlib.suppress(psutil.Error):
            if (load := process.cpu_percent()) > busiest:
                busiest, name = load, process.name()
    return percent, name


def peak_resident_gb() -> float:
    """This process' peak resident size, in 1e9 bytes."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
