"""The sweep as a user runs it: real scripts and processes, with a stand-in for the training."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from signals import hear_signals

ROOT = Path(__file__).parent.parent
CIFAR100 = ROOT / "pytorch_test_computer_vision_cifar100.py"
SCRIPT = """
import itertools, os, signal, sys, time
import harness.process
import utils

utils.other_load = lambda: (0.0, None)  # it takes a second of every run
if os.environ.get("EVENT") == "killed for memory":  # the system counts what it kills
    harness.process.memory_kills = itertools.count().__next__

EXPERIMENT = utils.Experiment(
    title="Fake", chart="fake", description="", backend="fake", task="cv", dataset="none",
    model="tiny", input_size=8, epochs=1, varied=utils.batch_sizes("1, 2, 3"), samples=1000,
)

def prepare(options):
    return {"machine": "M", "device": "cpu", "framework": "fake 1", "data": "synthetic"}

def measure(batch_size, options):
    event = os.environ.get("EVENT", "") if batch_size == 2 else ""
    if event.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if event == "crashed":
        os.kill(os.getpid(), signal.SIGSEGV)
    if event == "error":
        raise ValueError("the model is wrong")
    if event == "out of memory":
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        bytearray(2**33)
    if batch_size > int(os.environ.get("FITS", 1000)):
        raise MemoryError("out of memory")
    if event == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if event == "tear":
        path = EXPERIMENT.results_path(options.results_dir, "M")
        path.write_text(path.read_text()[:-20])
    return {"avg_time_per_epoch": 1.0, "samples_per_second": 2.0, "extrapolated": False}

if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "fake_test.py"
    path.write_text(SCRIPT)
    return path


def command(script, tmp_path, *flags):
    return [sys.executable, str(script), f"--results_dir={tmp_path / 'results'}", *flags]


def run(script, tmp_path, *flags, **environment):
    environment = {name.upper(): str(value) for name, value in environment.items()}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command(script, tmp_path, *flags), env=environment, capture_output=True, text=True
    )


def rows(tmp_path):
    (path,) = (tmp_path / "results").rglob("*_results.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def statuses(tmp_path):
    return [(row["batch_size"], row["status"]) for row in rows(tmp_path)]


def test_every_batch_size_has_a_row_and_a_rerun_adds_rows(script, tmp_path):
    assert run(script, tmp_path).returncode == 0
    assert run(script, tmp_path, "--batch_sizes=3").returncode == 0
    assert statuses(tmp_path) == [("1", "ok"), ("2", "ok"), ("3", "ok"), ("3", "ok")]


@pytest.mark.parametrize(
    ("event", "status", "goes_on", "code"),
    [
        ("killed for memory", "killed", False, 0),
        ("killed", "killed", True, 1),
        ("out of memory", "out_of_memory", False, 0),
        ("crashed", "killed", True, 1),
        ("error", "error", True, 1),
    ],
)
def test_a_failure_costs_one_row(script, tmp_path, event, status, goes_on, code):
    done = run(script, tmp_path, "--batch_sizes=1,2,3,1", event=event)
    expected = [("1", "ok"), ("2", status), *([("3", "ok")] if goes_on else []), ("1", "ok")]
    assert statuses(tmp_path) == expected
    assert done.returncode == code
    assert ("3: skipped" in done.stdout) is not goes_on
    failed = rows(tmp_path)[1]
    assert failed["error"] and failed["avg_time_per_epoch"] == ""


@pytest.fixture
def in_background():
    """The tests as a shell's background job: hear_signals must be enough."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_keeps_what_was_measured(script, tmp_path, in_background):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EVENT": "wait"}
    process = subprocess.Popen(
        command(script, tmp_path), env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hear_signals,
    )  # fmt: skip
    for line in process.stdout:
        if "waiting" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "1 rows of this run are saved under" in errors and "Traceback" not in errors
    assert statuses(tmp_path) == [("1", "ok")]


def test_two_runs_at_once_lose_no_row(script, tmp_path):
    # A folder of its own for the lock that tells of other benchmarks: none but these three count.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    runs = [
        subprocess.Popen(command(script, tmp_path), env=environment, stdout=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [process.wait(60) for process in runs] == [0, 0, 0]
    assert len(rows(tmp_path)) == 9
    assert {row["other_benchmark_running"] for row in rows(tmp_path)} == {"False", "True"}


def test_torn_file_is_named_and_left_alone(script, tmp_path):
    run(script, tmp_path)
    (path,) = (tmp_path / "results").rglob("*_results.csv")
    torn = path.read_text()[:-20]
    path.write_text(torn)
    done = run(script, tmp_path)
    assert done.returncode == 1
    assert str(path) in done.stderr and len(done.stderr.splitlines()) == 1
    assert path.read_text() == torn


def test_file_torn_during_the_run_costs_no_row(script, tmp_path):
    run(script, tmp_path, event="tear")
    saved = "".join(path.read_text() for path in (tmp_path / "results").rglob("*.csv"))
    assert [f"\n{size},1," in saved for size in (1, 2, 3)] == [True] * 3


def test_older_file_with_fewer_columns_keeps_its_cells(script, tmp_path):
    path = tmp_path / "results/results_fake_cv/M_none_tiny_8_fake_results.csv"
    path.parent.mkdir(parents=True)
    path.write_text("batch_size,avg_time_per_epoch,note\n16,12.3400,by hand\n")
    assert run(script, tmp_path).returncode == 0
    old = rows(tmp_path)[0]
    assert (old["batch_size"], old["avg_time_per_epoch"], old["note"]) == (
        "16",
        "12.3400",
        "by hand",
    )
    assert len(rows(tmp_path)) == 4


def test_resume_skips_what_is_measured(script, tmp_path):
    run(script, tmp_path, event="error")
    run(script, tmp_path, "--resume")
    expected = [("1", "ok"), ("2", "error"), ("3", "ok"), ("2", "ok")]
    assert statuses(tmp_path) == expected
    run(script, tmp_path, "--resume", "--precision=bf16", "--batch_sizes=1")
    assert len(rows(tmp_path)) == 5


@pytest.mark.parametrize(
    "flag",
    ["--batch_sizes=", "--batch_sizes=abc", "--batch_sizes=32,,64", "--batch_sizes=0",
     "--batch_sizes=-4", "--epochs=0", "--max_seconds=-1", "--device=abacus",
     "--machine_name=a/b", "--results_dir=/proc/nowhere"],
)  # fmt: skip
def test_bad_usage_is_one_line_and_imports_no_framework(flag, tmp_path):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", CIFAR100, flag], capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert flag.split("=")[0] in lines[-1] and "Traceback" not in done.stderr
    assert not any(f"| {name}" in done.stderr for name in ("torch", "pandas", "tensorflow"))
    # Half a second on an idle machine; a framework's import takes seconds.
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(("fits", "found"), [(5, 5), (1000, 1000)])
def test_largest_batch_size_is_found_and_measured(script, tmp_path, fits, found):
    done = run(script, tmp_path, "--find_max_batch_size", fits=fits)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path) == [(str(found), "ok")]


def test_nothing_fits(script, tmp_path):
    done = run(script, tmp_path, "--find_max_batch_size", fits=0)
    assert done.returncode == 1 and "not even batch size 1" in done.stderr


def test_repeats_go_in_rounds_and_resume_counts_them(script, tmp_path):
    run(script, tmp_path, "--batch_sizes=1,2")
    run(script, tmp_path, "--batch_sizes=1,2", "--repeats=2", "--resume")
    assert [size for size, _ in statuses(tmp_path)] == ["1", "2", "1", "2"]


def test_shuffled_order_is_the_seeds(script, tmp_path):
    flags = ("--batch_sizes=1,2,3", "--shuffle_batch_sizes", "--seed=1")
    run(script, tmp_path, *flags)
    run(script, tmp_path, *flags)
    sizes = [size for size, _ in statuses(tmp_path)]
    assert sizes[:3] == sizes[3:] != ["1", "2", "3"]


def test_load_before_the_sweep_and_of_a_whole_process_is_in_no_row(script, tmp_path):
    """Only a clock says what others took meanwhile; this stand-in has none."""
    script.write_text(script.read_text().replace("(0.0, None)", '(77.0, "a game")'))
    done = run(script, tmp_path, "--batch_sizes=1")
    assert "77 % busy, most of all a game" in done.stdout
    assert [row["other_load_percent"] for row in rows(tmp_path)] == [""]
