"""Which machine this is. Imports no ML framework; what cannot be read is None, never guessed."""

import json
import math
import platform
import re
import subprocess

import psutil


def machine_facts() -> dict:
    """The machine columns that need no framework: chip, cores, memory (GB = 1e9 bytes), os, ..."""
    return {
        "chip": chip_name(),
        "cpu_cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "gpu_cores": apple_gpu_cores(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "power": power_source(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def chip_name() -> str | None:
    """The processor's name as py-cpuinfo reports it, without trademark signs and clock rate."""
    import cpuinfo

    brand = cpuinfo.get_cpu_info().get("brand_raw") or ""
    noise = r"\((R|TM)\)|\bCPU\b|@.*|\d+-Core Processor|\bProcessor\b|with Radeon.*"
    return " ".join(re.sub(noise, " ", brand).split()) or None


def apple_gpu_cores() -> int | None:
    """GPU cores of an Apple chip, from `system_profiler`; None elsewhere."""
    if platform.system() != "Darwin":
        return None
    command = ["system_profiler", "SPDisplaysDataType", "-json"]
    try:
        report = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_gpu_cores(report)


def parse_gpu_cores(report: str) -> int | None:
    """The core count in the JSON that `system_profiler SPDisplaysDataType -json` prints."""
    try:
        return int(json.loads(report)["SPDisplaysDataType"][0]["sppci_cores"])
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def power_source() -> str | None:
    """`ac` or `battery`; None on a machine without a battery."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery and ("ac" if battery.power_plugged else "battery")


def machine_tag(facts: dict, device_type: str, gpu_name: str | None, gpu_bytes: int | None) -> str:
    """The name a machine's results are filed under, e.g. `Apple_M3_Pro_18GB_14_GPU_Cores`.

    Args:
        facts: what `machine_facts` returned.
        device_type: `cpu`, `mps` or `cuda`: the device that is really used.
        gpu_name, gpu_bytes: of a CUDA card, from the framework.
    """
    if device_type == "cuda":
        # Some cards carry their memory in their name.
        parts = [gpu_name, "" if re.search(r"\d+GB", gpu_name) else gigabytes(gpu_bytes)]
    else:
        cores, kind = facts["cpu_cores"], "Cores"
        if device_type == "mps":
            cores, kind = facts["gpu_cores"], "GPU_Cores"
        elif platform.system() == "Darwin":
            kind = "CPU_Cores"
        parts = [facts["chip"] or platform.machine()]
        memory = gigabytes(facts["memory_gb"] * 1e9)
        count = f"{cores}_{kind}" if cores else ""
        parts += [memory, count] if platform.system() == "Darwin" else [count, memory]
    return re.sub(r"[^A-Za-z0-9.-]+", "_", "_".join(filter(None, parts))).strip("_")


def gigabytes(size: float) -> str:
    """Memory as it is sold: a 24 GB card reports slightly less than 24 * 2**30 bytes."""
    return f"{math.ceil(round(size) / 2**30)}GB"
