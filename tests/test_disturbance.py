"""What else the machine did while a clock ran; standstills; and what a card's driver says."""

import itertools
import math
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import fake_nvml
import pytest
from fake_nvml import Card
from result_files import training_row

import harness.awake
import harness.disturbance
import harness.nvidia
from harness.clock import Clock
from harness.disturbance import Times, Watch, disturbed, other_load_percent
from harness.observer import Observer
from harness.process import run_in_fresh_process, tell
from harness.terminal import input_bound, verdicts

CORES = len(harness.cores.allowed_cpus())


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def watched(function) -> Times:
    before = Times.now()
    function()
    return Times.now().since(before)


def in_a_worker() -> None:
    """As a data loader's worker: started before the clock, alive when it stops."""
    worker = multiprocessing.get_context("spawn").Process(target=spin, args=(60,), daemon=True)
    worker.start()
    time.sleep(1.5)
    in_a_worker.running = worker


def in_a_worker_that_ends() -> None:
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"])


def in_a_thread() -> None:
    thread = threading.Thread(target=spin, args=(1.0,))
    thread.start()
    thread.join()


@pytest.mark.parametrize("work", [in_a_worker, in_a_worker_that_ends, in_a_thread])
def test_own_workers_and_threads_are_no_others(work):
    spent = watched(work)
    if work is in_a_worker:
        in_a_worker.running.kill()
    # On a busy machine it has less than a core; what it has is its own in any case.
    assert spent.own > 0.3


def test_another_programs_time_is_no_own_time():
    """Started through a shell that ends at once, so that it belongs to nobody here."""
    code = "import time\nwhile time.process_time() < 1.5: pass"
    shell = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "{code}" >/dev/null 2>&1 & echo $!'],
        capture_output=True, text=True,
    )  # fmt: skip
    spent = watched(lambda: time.sleep(1.5))
    os.kill(int(shell.stdout), signal.SIGKILL)
    assert spent.own < 0.2 and spent.busy > 0.3
    assert other_load_percent(spent) > 100 * 0.3 / 1.5 / CORES - 10


@pytest.mark.parametrize(
    ("wall", "busy", "own", "percent"),
    [(10, 10 * CORES, 10 * CORES, 0), (10, 10 * CORES, 5 * CORES, 50), (10, 3.0, 3.1, 0)],
)
def test_other_load_by_hand(wall, busy, own, percent):
    assert other_load_percent(Times(wall, busy, own, 0, 0)) == pytest.approx(percent)


def test_over_too_short_a_time_nothing_is_said():
    assert other_load_percent(Times(0.5, 0.5, 0.1, 0, 0)) is None


def unusual(device, *times) -> str:
    watch = Watch(device)
    watch.spent = Times(*times)
    return "; ".join(watch.unusual())


def test_a_run_that_waits_is_named_on_the_processor_only():
    """As the row that was fifteen times too slow, and its probe with it."""
    assert unusual("cpu", 100.0, 30.0, 12.0, 0, 5000).startswith("waited: 12.0 s of processor time")
    assert unusual("cpu", 100.0, 200.0, 190.0, 0, 5000) == ""
    assert unusual("mps", 100.0, 30.0, 12.0, 0, 5000) == ""


def test_a_run_short_of_memory_is_named():
    assert "2000 pages a second" in unusual("mps", 10.0, 9.0, 9.0, 20_000, 0)
    assert unusual("mps", 10.0, 9.0, 9.0, 50, 0) == ""


def test_the_verdict_on_other_programs():
    calm = {"compute_samples_per_second": 100.0, "input_bound_percent": 0.0}
    for load, said in ((4.0, []), (35.0, ["disturbed: other programs had 35 % of the processor"])):
        row = training_row("M", 32, 1.0, 100, other_load_percent=load, **calm)
        assert [v[: len(s)] for v, s in zip(verdicts(row), said, strict=True)] == said
    row = training_row("M", 32, 1.0, 100, disturbance="suspended", **calm)
    assert verdicts(row) == ["unusual: suspended"]


@pytest.mark.parametrize(
    ("changed", "is_so"),
    [
        ({}, False),
        ({"other_load_percent": 10.0}, False),
        ({"other_load_percent": 10.1}, True),
        ({"other_load_percent": math.nan, "disturbance": math.nan}, False),  # read back as empty
        ({"other_load_percent": "35.2"}, True),
        ({"other_load_percent": "", "disturbance": "", "other_benchmark_running": ""}, False),
        ({"other_benchmark_running": True}, True),
        ({"other_benchmark_running": "True"}, True),
        ({"other_benchmark_running": "False"}, False),
        ({"disturbance": "2 other processes computed on the same card"}, True),
        ({"disturbance": "short of memory: 2000 pages a second were read back from disk"}, True),
        ({"disturbance": "suspended"}, True),
        ({"disturbance": "still changing speed after 600 s"}, False),
        ({"disturbance": "still changing speed after 600 s; waited: 1.0 s"}, True),
    ],
)
def test_what_makes_a_run_a_disturbed_one(changed, is_so):
    row = training_row("M", 32, 1.0, 100, input_bound_percent=71.0) | changed
    assert disturbed(row) is is_so
    # What others took is not the data pipeline's fault.
    assert input_bound(training_row("M", 32, 1.0, 100) | changed) is not is_so


def test_another_benchmark_is_said_beside_the_number_too():
    said = verdicts(training_row("M", 32, 1.0, 100, other_benchmark_running=True))
    assert said == ["disturbed: another benchmark of this collection was running"]


def test_the_clock_watches_its_steady_part_and_only_that():
    class Meter:
        calls = []

        def begin(self):
            self.calls.append(clock.steps)

        def end(self):
            self.calls.append(clock.steps)

        def columns(self):
            return {"other_load_percent": 12.0, "disturbance": "waited"}

    clock = Clock(8, 80, 1, lambda: None, observer=Observer(watch=Meter()))
    clock.start()
    for _ in range(10):
        clock.step(8)
    clock.stop()
    row = clock.measurement()
    assert Meter.calls == [4, 10]  # after the first step and the warm-up
    assert (row["other_load_percent"], row["disturbance"]) == (12.0, "waited")


# Standing still


def train(steps: int) -> dict:
    clock = Clock(8, 8 * steps, 1, lambda: None)
    clock.start()
    for _ in range(steps):
        time.sleep(0.05)
        if clock.step(8):
            break
    clock.stop()
    return clock.measurement()


def train_in_a_process() -> dict:
    tell(str(os.getpid()))
    return train(60)


def test_ctrl_z_leaves_the_rate_and_marks_the_row():
    """A real SIGSTOP of two seconds in the middle of three."""

    def stop_and_go(message):
        if message and message[0].isdigit():
            pid = int(message[0])
            threading.Timer(1.5, os.kill, (pid, signal.SIGSTOP)).start()
            threading.Timer(3.5, os.kill, (pid, signal.SIGCONT)).start()

    row = run_in_fresh_process(train_in_a_process, progress=stop_and_go)["value"]
    calm = run_in_fresh_process(train_in_a_process)["value"]
    assert row["disturbance"] == "suspended" and calm["disturbance"] is None
    assert row["extrapolated"] and not calm["extrapolated"]
    # With the two seconds in it, it would be little more than half.
    assert row["samples_per_second"] == pytest.approx(calm["samples_per_second"], rel=0.2)
    assert row["avg_time_per_epoch"] == pytest.approx(calm["avg_time_per_epoch"], rel=0.2)


def test_a_machine_that_slept_is_noticed(monkeypatch):
    slept = itertools.repeat(100.0)
    monkeypatch.setattr(harness.awake, "asleep_seconds", lambda: next(slept))
    assert train(30)["disturbance"] is None
    slept = itertools.chain([100.0] * 4, itertools.repeat(160.0))
    row = train(30)
    assert row["disturbance"] == "suspended" and row["extrapolated"]


def test_the_two_clocks_agree_where_nothing_slept():
    assert harness.awake.asleep_seconds() > -0.1
    pauses = harness.awake.Pauses()
    time.sleep(0.1)
    assert not pauses.since_last()


def test_a_mac_is_kept_awake(tmp_path, monkeypatch):
    program, said = tmp_path / "caffeinate", tmp_path / "said"
    program.write_text(f'#!/bin/sh\necho "$@" > {said}.part\nmv {said}.part {said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    harness.awake.stay_awake()
    assert not said.exists()  # elsewhere than on a Mac nothing is started
    monkeypatch.setattr(sys, "platform", "darwin")
    harness.awake.stay_awake()
    deadline = time.monotonic() + 10
    while not said.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert said.read_text() == f"-i -m -w {os.getpid()}\n"


def test_rosetta_is_named_at_the_start(monkeypatch):
    from harness import terminal

    facts = {"other_benchmark_running": False}
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    for answer, said in (("1\n", True), ("0\n", False), ("", False)):
        monkeypatch.setattr(terminal, "output_of", lambda *_, answer=answer: answer)
        notes = terminal.disturbances(facts, 0.0, None)
        assert any("Rosetta" in note for note in notes) is said


# The card


CARDS = tuple(Card(uuid=f"GPU-{number}", milliwatts=115_000) for number in range(4))


@pytest.mark.parametrize(
    ("visible", "index", "card"),
    [
        (None, 1, CARDS[1]),
        ("2,3", 1, CARDS[3]),
        ("GPU-0,GPU-2", 1, CARDS[2]),
        ("MIG-5ebe9e2b", 0, None),
        ("", 0, None),
        ("0", 3, None),
    ],
)
def test_the_card_in_use_is_the_one_that_is_asked(monkeypatch, visible, index, card):
    fake_nvml.install(monkeypatch, *CARDS, Card(slices=(Card(uuid="MIG-5ebe9e2b"),)))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert harness.nvidia.card_of(index) is card


def test_cards_in_another_order_than_the_drivers_are_not_guessed(monkeypatch):
    fake_nvml.install(monkeypatch, *CARDS)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert harness.nvidia.card_of(0) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3")
    assert harness.nvidia.card_of(0) is CARDS[3]


@pytest.fixture
def card(monkeypatch):
    """The second of two cards, which CUDA sees as the driver does."""
    second = Card(milliwatts=115_000)
    fake_nvml.install(monkeypatch, Card(), second)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return second


def test_columns_of_a_card(card):
    watch = Watch("cuda", 1)
    watch.begin()
    # Itself, a process that is not there (of another container), and one that is.
    card.reasons, card.processes = 0x4, (os.getpid(), 4999999, os.getppid())
    watch.end()
    row = watch.columns()
    assert row["gpu_power_limit_watts"] == 115.0
    assert row["thermal_state"] == "nominal, then power cap"
    assert row["disturbance"] == "1 other processes computed on the same card"


def test_the_heat_of_a_card_is_not_the_processors(card):
    card.reasons = 0x40
    watch = Watch("cpu", 1)
    watch.begin()
    watch.end()
    assert "thermal_state" not in watch.columns()


def test_a_driver_that_does_not_tell_leaves_cells_empty(card):
    card.milliwatts = card.reasons = card.processes = None
    watch = Watch("cuda", 1)
    watch.begin()
    watch.end()
    assert {"gpu_power_limit_watts", "thermal_state", "disturbance"}.isdisjoint(watch.columns())


def card_order() -> str:
    return os.environ["CUDA_DEVICE_ORDER"]


def test_cuda_numbers_cards_as_the_driver_does(monkeypatch):
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert run_in_fresh_process(card_order)["value"] == "PCI_BUS_ID"
