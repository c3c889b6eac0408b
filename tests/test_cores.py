"""What a process may use of a machine: affinity, control groups, fast cores, swap."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import harness.cores
import harness.machine
import harness.swap
from harness.terminal import disturbances

ROOT = Path(__file__).parent.parent
V1 = Path("/sys/fs/cgroup/cpu")
CGROUP2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
OTHERS = "23 1 8:1 / / rw - ext4 /dev/root rw\n24 23 0:5 / /proc rw - proc proc rw\n"


def tree(root, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota", "memory"),
    [
        # A container of today: it sees its own group as the whole tree.
        (
            {
                "proc/self/cgroup": "0::/\n",
                "proc/self/mountinfo": OTHERS + CGROUP2,
                "sys/fs/cgroup/cpu.max": "250000 100000\n",
                "sys/fs/cgroup/memory.max": "8589934592\n",
            },
            2.5,
            2**33,
        ),
        # A batch system's job: the tightest of the groups it lies in counts.
        (
            {
                "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
                "proc/self/mountinfo": OTHERS + CGROUP2,
                "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000\n",
                "sys/fs/cgroup/slurm/job_7/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/slurm/cpu.max": "6400000 100000\n",
                "sys/fs/cgroup/slurm/job_7/memory.max": "max\n",
                "sys/fs/cgroup/slurm/memory.max": "17179869184\n",
            },
            4.0,
            2**34,
        ),
        # Docker with version 1: the group's path is the host's, the mount shows a part of it.
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/x\n",
                "proc/self/mountinfo": OTHERS
                + "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
                + "33 31 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648\n",
            },
            0.5,
            2**31,
        ),
        # No limit, in both versions' words.
        (
            {
                "proc/self/cgroup": "1:cpu:/\n0::/\n",
                "proc/self/mountinfo": OTHERS
                + "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
            None,
        ),
        ({}, None, None),  # macOS
    ],
)
def test_limits_of_containers(tmp_path, files, quota, memory):
    root = tree(tmp_path, files)
    assert harness.cores.cpu_quota(root) == quota
    limits = harness.cores.cgroup_values("memory", harness.cores.read_memory_limit, root)
    assert min(limits, default=None) == memory


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (2.9, 2), (64.0, 8), (None, 8)])
def test_a_share_is_rounded_down_to_at_least_one_core(monkeypatch, quota, cores):
    monkeypatch.setattr(harness.cores, "allowed_cpus", lambda: set(range(8)))
    monkeypatch.setattr(harness.cores, "cpu_quota", lambda: quota)
    assert harness.cores.usable_cores() == cores
    assert harness.cores.physical_cores() <= cores


ASK = """
import harness.cores as cores, harness.machine as machine
from harness.device import Device
facts = machine.machine_facts() | {"chip": "Chip", "memory_gb": 8}
print(cores.usable_cores(), facts["cpu_cores"], cores.performance_cores(),
      Device("cpu").tag(facts))
"""


def ask(**changed) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, **changed
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on macOS")
def test_taskset_is_heeded_everywhere():
    one = min(os.sched_getaffinity(0))
    assert ask(preexec_fn=lambda: os.sched_setaffinity(0, {one})) == "1 1 1 Chip_1_Cores_8GB"


BOUND = """
import os
import harness.cores, torch
from harness.frameworks import pytorch
facts = pytorch.facts(torch.device("cpu"))
print(len(os.sched_getaffinity(0)), harness.cores.usable_cores(), facts["cpu_cores"])
print(torch.get_num_threads(), facts["threads"])
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="OpenMP on Linux binds to one of several cores",
)
def test_openmp_that_binds_or_limits_does_not_make_another_machine(tmp_path):
    limits = {"OMP_PROC_BIND": "close", "OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BOUND], env={**os.environ, "PYTHONPATH": str(ROOT), **limits},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    cores, threads = done.stdout.splitlines()
    assert cores == f"1 {harness.cores.usable_cores()} {harness.cores.physical_cores()}"
    assert threads == "2 1"  # PyTorch says two, of which OpenMP starts one


@pytest.mark.skipif(not os.access(V1, os.W_OK), reason="no control groups to be made here")
def test_a_real_control_group_is_heeded():
    group = V1 / f"test_cores_{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("150000")  # of a period of 100,000

        said = ask(preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
        assert said == "1 1 1 Chip_1_Cores_8GB"
    finally:
        group.rmdir()


def test_two_threads_of_one_core_count_once(tmp_path):
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    pairs = {siblings.format(n): f"{n % 4},{n % 4 + 4}\n" for n in range(8)}
    assert harness.cores.count_cores(range(8), tree(tmp_path, pairs)) == 4
    assert harness.cores.count_cores({0, 1, 4}, tmp_path) == 2
    assert harness.cores.count_cores(range(8), tmp_path / "nothing") == 8


@pytest.mark.parametrize(
    ("levels", "cores"),
    [
        ({"hw.nperflevels": "2", "hw.perflevel0.physicalcpu": "5",
          "hw.perflevel1.physicalcpu": "6"}, 5),
        ({"hw.nperflevels": "3", "hw.perflevel0.physicalcpu": "6",
          "hw.perflevel1.physicalcpu": "8", "hw.perflevel2.physicalcpu": "4"}, 14),
        ({"hw.nperflevels": "1", "hw.perflevel0.physicalcpu": "8"}, 8),
        ({}, None),
    ],
)  # fmt: skip
def test_fast_cores_of_an_apple_chip(levels, cores):
    assert harness.cores.apple_performance_cores(lambda name: levels.get(name, "")) == cores


def test_fast_cores_of_an_intel_hybrid(tmp_path, monkeypatch):
    root = tree(tmp_path, {"sys/devices/cpu_core/cpus": "0-3,8\n"})
    assert harness.cores.intel_performance_cpus(root) == {0, 1, 2, 3, 8}
    assert harness.cores.intel_performance_cpus(tmp_path / "nothing") == set()
    monkeypatch.setattr(harness.cores, "allowed_cpus", lambda: set(range(12)))
    monkeypatch.setattr(harness.cores, "cpu_quota", lambda: None)
    monkeypatch.setattr(harness.cores, "count_cores", len)
    monkeypatch.setattr(harness.cores, "intel_performance_cpus", lambda: {0, 1, 2, 3, 20})
    assert harness.cores.performance_cores() == 4  # of five, one may not be used


def test_inherited_threads_are_recorded_and_said(monkeypatch):
    import torch

    from harness.frameworks import pytorch

    assert pytorch.facts(torch.device("cpu"))["threads"] == torch.get_num_threads()
    monkeypatch.setattr(harness.cores, "performance_cores", lambda: 8)
    facts = {"threads": 1, "other_benchmark_running": False}
    for name in harness.cores.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert disturbances(facts, 0.0, None) == []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (note,) = disturbances(facts, 0.0, None)
    assert "1 of 8 cores" in note and "OMP_NUM_THREADS=1" in note
    assert disturbances(facts | {"threads": 8}, 0.0, None) == []


def test_pytorch_computes_with_no_more_threads_than_it_may_use(monkeypatch):
    import torch

    from harness.frameworks import pytorch

    before = torch.get_num_threads()
    monkeypatch.setattr(harness.cores, "usable_cores", lambda: 1)
    pytorch.start(Namespace(device="cpu", seed=1, precision="fp32"))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               12345.
Pageins:                                 999999.
Pageouts:                                 88888.
Swapins:                                      7.
Swapouts:                                  1000.
"""


def test_swap_is_counted_in_the_systems_pages():
    assert harness.swap.parse_vm_stat(VM_STAT) == 1000 * 16384  # none of the 88,888 pageouts
    assert harness.swap.parse_vmstat("pswpin 5\npswpout 3\npgpgout 9", 65536) == 3 * 65536
    assert harness.swap.parse_vm_stat("") is None and harness.swap.parse_vmstat("", 4096) is None
    assert harness.swap.written_gb(10**9, 3 * 10**9) == 2.0
    assert harness.swap.written_gb(None, None) is None
    if Path("/proc/vmstat").exists():
        assert harness.swap.swapped_out() >= 0
