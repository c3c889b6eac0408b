"""Several devices at one training: the same training, counted right, failures with their rank."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import rank_functions as functions
from rank_functions import Planted

import utils
from harness import torchrun
from harness.clock import Clock, Team
from harness.process import UsageError, UserError, run_in_fresh_process
from pytorch_test_computer_vision_cifar100 import EXPERIMENT

ROOT = Path(__file__).parent.parent


def on_two_ranks(function, *point, **changed):
    return run_in_fresh_process(
        torchrun.measure_on_ranks, function, *point, functions.options(**changed)
    )


def test_two_ranks_train_what_one_trains_with_twice_the_batch():
    together = on_two_ranks(functions.weights_after_training)
    alone = run_in_fresh_process(functions.weights_after_training, functions.options())
    assert together["status"] == alone["status"] == "ok", together
    # The ranks begin with rank 0's weights, which the single process has too.
    assert together["value"]["weights"] == pytest.approx(alone["value"]["weights"], abs=1e-5)


def test_a_row_counts_the_samples_of_all_ranks():
    outcome = on_two_ranks(functions.tiny_row, 4, max_seconds=None)
    assert outcome["status"] == "ok", outcome
    row = outcome["value"]
    assert (row["num_devices"], row["steps_per_epoch"]) == (2, 32)  # of 256 samples, 4 on each
    assert row["gradient_gb"] == pytest.approx((192 * 100 + 100) * 4 / 1e9)
    assert row["communication_percent"] < 100 and row["samples_per_second"] > 0


def test_a_clock_waits_for_its_own_device_and_then_for_all_ranks(tmp_path, monkeypatch):
    """Else a window would end before the others' work does."""
    import torch.distributed as dist

    from harness.frameworks import pytorch, ranks

    waited, wait_for_all = [], dist.barrier
    monkeypatch.setattr(pytorch, "synchronize", lambda device: lambda: waited.append("own"))
    monkeypatch.setattr(dist, "barrier", lambda: (waited.append("all"), wait_for_all()))
    monkeypatch.setattr("harness.frameworks.training.several", ranks.measure_training)
    monkeypatch.setattr("harness.clock.PROBE_SECONDS", functions.harness.clock.PROBE_SECONDS)
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        functions.tiny_row(4, functions.options())
    finally:
        ranks.leave()
    # The clock's start, first step, warm-up and stop, and as often in each of the two probes.
    assert waited == ["own", "all"] * (len(waited) // 2) and len(waited) >= 2 * (4 + 2 * 4)


def test_a_clock_counts_all_ranks_and_ends_its_windows_where_rank_0_says():
    now, agreed = [0.0], []

    def agree(number):
        agreed.append(float(number))
        return float(number)

    clock = Clock(8, 8_000, 1, lambda: None, max_seconds=10.0, now=lambda: now[0],
                  team=Team(4, 0, agree))  # fmt: skip
    clock.start()
    time_is_up = False
    while not time_is_up:
        now[0] += 0.1
        time_is_up = clock.step(8)
    clock.stop()
    assert clock.measurement()["samples_per_second"] == pytest.approx(4 * 8 / 0.1)
    assert {window.steps for window in clock.windows} == {5}  # half a second
    assert agreed[0] == 5 and set(agreed[1:-1]) == {0} and agreed[-1] == 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (functions.second_rank_raises, "rank 1: ValueError: the model is wrong"),
        (functions.second_rank_is_killed, "rank 1: ended by SIGKILL (often: out of memory)"),
        (
            Planted(functions.nothing, "PROJECT_VERSION", None),
            ": UsageError: the machines differ: torch",
        ),
        (Planted(functions.second_rank_hangs, "STALLED", timedelta(seconds=3)), "rank 0: "),
    ],
)
def test_a_rank_that_fails_ends_all_within_a_minute(function, said):
    started = time.monotonic()
    outcome = on_two_ranks(function)
    assert said in outcome["error"], outcome
    assert time.monotonic() - started < 60


def test_one_device_is_as_it_was():
    ours = functions.options(num_devices=1)
    scripts = functions.nothing, functions.tiny_row
    assert torchrun.on_ranks(*scripts, ours) == scripts
    row = functions.tiny_row(4, ours)
    assert "communication_percent" not in row


def test_more_devices_than_there_are_is_bad_usage():
    with pytest.raises(UsageError, match=r"--num_devices=1000: there are \d+ of cpu"):
        torchrun.device_count(functions.options(num_devices=1000))
    with pytest.raises(UsageError, match="--nnodes: --master_addr"):
        torchrun.require_address(functions.options(num_machines=2))


ALONE = """
import rank_functions as functions
from harness import torchrun
print(torchrun.measure_on_ranks(functions.tiny_row, 4, functions.options())["num_devices"])
"""


def test_one_machine_needs_no_network_card_and_no_name(tmp_path):
    (tmp_path / "hosts").write_text("127.0.0.1 nobody\n")
    hosts = ["unshare", "--mount", "sh", "-c", f'mount --bind {tmp_path}/hosts /etc/hosts && "$@"']
    if not shutil.which("unshare") or subprocess.run([*hosts, "sh", "true"]).returncode:
        hosts = ["env"]  # only root may change what localhost is
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "GLOO_SOCKET_IFNAME": "no_such_card",
        "NCCL_SOCKET_IFNAME": "no_such_card",
    }  # fmt: skip
    done = subprocess.run(
        [*hosts, *(["sh"] if hosts != ["env"] else []), sys.executable, "-c", ALONE],
        env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout.split()[-1:] == ["2"], done.stderr


def test_an_address_of_no_card_is_said():
    assert torchrun.interface(torchrun.own_address(None)).startswith("lo")
    with pytest.raises(UserError, match="no network interface here has the address 192.0.2.1"):
        torchrun.interface("192.0.2.1")


def test_scaling_is_against_this_machines_row_of_one_device():
    row = {"status": "ok", "num_devices": 4, "samples_per_second": 300.0, "batch_size": 32}
    old = {"status": "ok", "num_devices": "1", "samples_per_second": "100", "batch_size": "32"}
    assert EXPERIMENT.scaling(row, [old]) == {"scaling_efficiency_percent": 75}
    assert EXPERIMENT.scaling(row, [old | {"batch_size": "64"}]) == {}
    assert EXPERIMENT.scaling(row | {"num_devices": 1}, [old]) == {}
    weaker = [old | {"samples_per_second": "50", "other_load_percent": "60"}]
    weaker += [old | {"samples_per_second": cell} for cell in ("inf", "0", "")]
    assert EXPERIMENT.scaling(row, [old, *weaker]) == {"scaling_efficiency_percent": 75}


# Two machines: network namespaces joined by a cable


@pytest.fixture
def machines():
    """Two namespaces, a and b, of addresses 10.77.0.1 and 10.77.0.2; yields their interfaces."""
    # New names each time, because a cable outlives its namespace for a moment.
    cable = {name: f"speed_{name}{time.monotonic_ns() % 10**6}" for name in "ab"}

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, check=True)

    remove = [("netns", "del", "speed_a"), ("netns", "del", "speed_b")]
    for words in remove:  # what a run that was killed has left
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            ip(*words)
    try:
        for name in "ab":
            ip("netns", "add", f"speed_{name}")
        ip("link", "add", cable["a"], "type", "veth", "peer", "name", cable["b"])
        for number, name in enumerate("ab", start=1):
            inside = ("-n", f"speed_{name}")
            ip("link", "set", cable[name], "netns", f"speed_{name}")
            ip(*inside, "addr", "add", f"10.77.0.{number}/24", "dev", cable[name])
            ip(*inside, "link", "set", cable[name], "up")
            ip(*inside, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces need root, and the package iproute2")
    yield cable
    for words in remove:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip(*words)


def start(name, rank, *seconds):
    inside = ["ip", "netns", "exec", f"speed_{name}", sys.executable]
    command = [*inside, ROOT / "tests/rank_functions.py", str(rank), "10.77.0.1:29411", *seconds]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_two_machines_train_together_and_machine_0_has_the_row(machines):
    first, second = start("a", 0), start("b", 1)
    assert first.communicate(timeout=100)[0].split()[-1] == "2"
    assert "nothing to say" in second.communicate(timeout=100)[0]


def test_a_machine_that_never_joins_is_one_line(machines):
    said = start("a", 0).communicate(timeout=100)[0]
    assert "not all machines joined at 10.77.0.1:29411 within 15 s" in said


def test_a_machine_taken_away_while_they_train_is_one_line(machines):
    first, second = start("a", 0, "3600"), start("b", 1, "3600")
    assert first.stdout.readline() == second.stdout.readline() == "training\n"
    time.sleep(5)
    subprocess.run(["ip", "-n", "speed_b", "link", "set", machines["b"], "down"], check=True)
    cut = time.monotonic()
    said = first.communicate(timeout=100)[0]
    second.kill()
    assert time.monotonic() - cut < 60
    assert "RuntimeError: rank 0: " in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "flags",
    [["--nnodes=2", "--node_rank=1", "--master_addr=here", "--master_port=17"],
     ["--num_machines=2", "--machine_rank=1", "--main_address=here:17"]],
)  # fmt: skip
def test_flags_are_torchruns_and_the_older_names_still_do(monkeypatch, flags):
    experiment = utils.Experiment(
        "A", "a", "", "pytorch", "cv", "m", varied=utils.batch_sizes("1"), epochs=1
    )
    monkeypatch.setattr(sys, "argv", ["a", *flags])
    options = utils.parse_arguments(experiment)
    assert (options.num_machines, options.machine_rank) == (2, 1)
    assert options.main_address == "here:17"
