"""What else a machine did while a clock ran, and what was unusual about the run itself.

Processor time is counted where the steady part of a run begins and where it ends, outside of its
windows: an average needs no more, and nothing is spent between. Imports no ML framework.
"""

import resource
import time
from typing import NamedTuple

import psutil

import harness.machine
import harness.nvidia
from harness.cores import allowed_cpus
from harness.results import number_of
from harness.soak import UNSTEADY

SHORTEST = 1.0  # seconds; over less, the system's counters of 1/100 s tell too little
BUSY_CORES = 0.7  # a run on the processor that keeps less than that of one core at work waits
OTHERS_PERCENT = 10.0  # of the cores: more in others' hands, and a number is not the machine's own
FAULTS_PER_SECOND = 10.0  # pages read back from disk, of a process whose memory is its own


class Times(NamedTuple):
    """Counters of the machine and of this process, in seconds but for the last two."""

    wall: float
    busy: float  # of all cores that this process may use, steal time included
    own: float  # of this process and all that it started
    major_faults: int  # of this process alone: its data loaders read files
    involuntary_switches: int

    @classmethod
    def now(cls, with_siblings: bool = False) -> "Times":
        """At this moment.

        Args:
            with_siblings: count as own what this process' parent started, and that one itself.
        """
        own = resource.getrusage(resource.RUSAGE_SELF)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = sum(t.ru_utime + t.ru_stime for t in (own, ended))
        if with_siblings:
            parent = psutil.Process().parent()
            seconds = seconds_of(parent) + seconds_of_family(parent)
        else:
            seconds += seconds_of_family(psutil.Process())
        return cls(time.perf_counter(), busy_seconds(), seconds, own.ru_majflt, own.ru_nivcsw)

    def since(self, before: "Times") -> "Times":
        return Times(*(after - earlier for after, earlier in zip(self, before, strict=True)))


def seconds_of_family(process: psutil.Process) -> float:
    """Processor time of the living processes that this one started, and of what those waited for.

    Such as the workers of a data loader.
    """
    return sum(seconds_of(child) for child in process.children(recursive=True))


def seconds_of(process: psutil.Process) -> float:
    """Processor time of a process, and of the children that it waited for."""
    try:
        times = process.cpu_times()
    except psutil.Error:  # it ended: its time is among that of its parent's ended children
        return 0.0
    ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return times.user + times.system + ended


def busy_seconds() -> float:
    """Seconds that the allowed cores were at work, for anybody, or taken by a hypervisor."""
    allowed = allowed_cpus()
    total = 0.0
    for number, times in enumerate(psutil.cpu_times(percpu=True)):
        if number in allowed:
            # Time of guests is in `user` and `nice` already.
            idle = sum(getattr(times, n, 0.0) for n in ("idle", "iowait", "guest", "guest_nice"))
            total += sum(times) - idle
    return total


def other_load_percent(spent: Times) -> float | None:
    """Share of the allowed cores that others had; None over too short a time."""
    if spent.wall < SHORTEST:
        return None
    return max(0.0, 100 * (spent.busy - spent.own) / spent.wall / len(allowed_cpus()))


class Watch:
    """Looks at a machine from `begin` to `end`; then `columns` are those of a row.

    Args:
        device_type: `cpu`, `mps` or `cuda`: the device that works meanwhile.
        index: number of a CUDA card, as the framework counts.
        with_siblings: whether what this process' parent started works at the same training.
    """

    def __init__(self, device_type: str = "cpu", index: int = 0, with_siblings: bool = False):
        self.with_siblings = with_siblings
        self.device_type = device_type
        self.card = harness.nvidia.card_of(index) if device_type == "cuda" else None
        self.spent = None
        # Asked before the run: drivers take their time, in which a loader would fill its queue.
        self.heat = [self.thermal_state()]

    def begin(self) -> None:
        self.before = Times.now(self.with_siblings)

    def end(self) -> None:
        self.spent = Times.now(self.with_siblings).since(self.before)
        self.heat.append(self.thermal_state())

    def thermal_state(self) -> str | None:
        """`nominal`, or what is held back for heat or power; None where nothing tells."""
        if self.card:
            return harness.nvidia.thermal_state(self.card)
        return None if self.device_type == "cuda" else harness.machine.thermal_state()

    def columns(self) -> dict:
        """The columns of a row; those that are not known are left out."""
        if self.spent is None:
            return {}
        heat = list(dict.fromkeys(filter(None, self.heat)))
        found = {
            "other_load_percent": other_load_percent(self.spent),
            "thermal_state": ", then ".join(heat) or None,
            "gpu_power_limit_watts": harness.nvidia.power_limit(self.card),
            "disturbance": "; ".join(self.unusual()) or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def unusual(self) -> list[str]:
        """What a run of its kind does not do, in words."""
        found, spent = [], self.spent
        if spent.wall >= SHORTEST:
            cores = spent.own / spent.wall
            if self.device_type == "cpu" and cores < BUSY_CORES:
                found.append(
                    f"waited: {spent.own:.1f} s of processor time in {spent.wall:.1f} s, put aside "
                    f"{spent.involuntary_switches / spent.wall:.0f} times a second"
                )
            if spent.major_faults / spent.wall > FAULTS_PER_SECOND:
                found.append(
                    f"short of memory: {spent.major_faults / spent.wall:.0f} pages a second were "
                    "read back from disk"
                )
        others = harness.nvidia.other_processes(self.card) if self.card else 0
        if others:
            found.append(f"{others} other processes computed on the same card")
        return found


def disturbed(row) -> bool:
    """Whether others had a part in the number of a row, so that another run is better evidence.

    Others are programs at work on the processor or on the card, those that took the memory, and
    whoever suspended the run. A machine that even after its soak is not steady is so by itself.

    Args:
        row: as it was measured, or read back.
    """
    said = row.get("disturbance")
    unusual = said.split("; ") if isinstance(said, str) and said else []
    return (
        number_of(row.get("other_load_percent")) > OTHERS_PERCENT
        or row.get("other_benchmark_running") in (True, "True")
        or not all(part.startswith(UNSTEADY) for part in unusual)
    )
