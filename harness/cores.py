"""Which part of the machine this process may use: its processor cores and its memory.

A container, a batch system or `taskset` may leave less than there is, and what is left is what a
measurement is of. Imports no ML framework.
"""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from harness.system import sysctl, text_of

ROOT = Path("/")
# Asked before a framework is loaded: OpenMP may bind the process that loads it to one core.
ALLOWED = (
    os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
)
# They set how many threads PyTorch and TensorFlow compute with; modules and conda export them.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")


def usable_cores() -> int:
    """Logical cores that this process may use: its affinity, and its container's share of time."""
    count = len(allowed_cpus())
    share = cpu_quota()
    return count if share is None else max(1, min(count, int(share)))


def physical_cores() -> int:
    """Physical cores among them: two threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or usable_cores()
    return min(count_cores(allowed_cpus()), usable_cores())


def performance_cores() -> int:
    """The fast ones among them: without the efficiency cores of an Apple chip or Intel hybrid."""
    if platform.system() == "Darwin":
        return apple_performance_cores(sysctl) or physical_cores()
    fast = allowed_cpus() & intel_performance_cpus()
    return min(count_cores(fast), usable_cores()) if fast else physical_cores()


def usable_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's limit."""
    return min([psutil.virtual_memory().total, *cgroup_values("memory", read_memory_limit)])


def thread_note(facts: dict) -> str | None:
    """A plain sentence where an inherited variable leaves fast cores idle, else None.

    Args:
        facts: the columns that every row shares; `threads` among them where it is known.
    """
    threads, cores = facts.get("threads"), performance_cores()
    inherited = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
    if not threads or threads >= cores or not inherited:
        return None
    return f"{threads} of {cores} cores compute, because of {', '.join(inherited)}: unset it"


def openmp_threads(count: int, files: Iterable[str | None] = (None,)) -> int:
    """`count`, or fewer where an OpenMP that is loaded here starts no more threads.

    Args:
        files: its libraries; None is the one that the whole process shares, if any.
    """
    limits = []
    for library in map(ctypes.CDLL, files):
        with contextlib.suppress(AttributeError):  # no OpenMP
            limits.append(library.omp_get_thread_limit())
    return min([count, *limits])


# Processor


def allowed_cpus() -> set[int]:
    """Numbers of the logical cores that this process might run on when it began."""
    return set(ALLOWED)


def count_cores(cpus: Iterable[int], root: Path = ROOT) -> int:
    """Physical cores that the logical ones belong to; where that is not told, each is its own."""
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({text_of(root / topology.format(cpu)) or cpu for cpu in cpus})


def apple_performance_cores(ask) -> int | None:
    """Cores of all performance levels but the last, which has the efficiency cores.

    Args:
        ask: `ask(name)` is what `sysctl -n name` prints.
    """
    levels = ask("hw.nperflevels")
    if not levels.isdigit():
        return None
    fast = range(max(int(levels) - 1, 1))
    counts = [ask(f"hw.perflevel{level}.physicalcpu") for level in fast]
    return sum(map(int, counts)) if all(count.isdigit() for count in counts) else None


def intel_performance_cpus(root: Path = ROOT) -> set[int]:
    """Logical cores that the kernel counts as an Intel hybrid's performance cores; empty if none.

    The folder `cpu_core` is there on a hybrid only.
    """
    return parse_cpu_list(text_of(root / "sys/devices/cpu_core/cpus"))


def parse_cpu_list(text: str) -> set[int]:
    """The numbers of a kernel's list, such as `0-3,8`."""
    ranges = [part.partition("-") for part in text.split(",") if part]
    return {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}


# Containers: the limits of this process' control group and of all that it lies in.


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that the control groups allow; None where they do not limit it."""
    return min(cgroup_values("cpu", read_cpu_quota, root), default=None)


def cgroup_values(controller: str, read, root: Path = ROOT) -> list[float]:
    """What `read(folder)` finds in each of the control groups that this process lies in."""
    values = map(read, cgroup_folders(controller, root))
    return [value for value in values if value is not None]


def cgroup_folders(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """The folders of the control groups of this process, from its own up; versions 1 and 2.

    A container sees a part of the tree only: mountinfo tells which (see proc_pid_mountinfo(5)).
    """
    lines = text_of(root / "proc/self/cgroup").splitlines()
    entries = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    # The entry of version 2 names no controllers.
    own = {name: path for _, names, path in entries for name in names.split(",")}
    for line in text_of(root / "proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        name = {"cgroup": controller, "cgroup2": ""}.get(kind)
        if name not in own or name and controller not in options.split(","):
            continue
        _, _, _, seen_from, mounted_at, *_ = mount.split(" ")
        top = root / mounted_at.lstrip("/")
        path = Path(own[name])
        inside = path.relative_to(seen_from) if path.is_relative_to(seen_from) else Path()
        yield from (top / part for part in [inside, *inside.parents])


def read_cpu_quota(folder: Path) -> float | None:
    """Processors' worth of time of one control group: `cpu.max`, or version 1's two files."""
    quota, _, period = text_of(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = (text_of(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def read_memory_limit(folder: Path) -> int | None:
    """Bytes of one control group: `memory.max`, or version 1's file."""
    limit = text_of(folder / "memory.max") or text_of(folder / "memory.limit_in_bytes")
    return int(limit) if limit.isdigit() else None
