"""An experiment that one process measures: rows are kept as they come, whatever becomes of it."""

import os
import signal
import subprocess
import time

import psutil
import pytest
from signals import hear_signals
from test_sweep import ROOT, command, rows, run, statuses

SCRIPT = """
import os, signal, time
import utils

utils.other_load = lambda: (0.0, None)  # it takes a second of every run

EXPERIMENT = utils.Experiment(
    title="Fake", chart="fake", description="", backend="fake", task="cv", dataset="none",
    model="tiny", input_size=8, varied=utils.batch_sizes("1, 2, 3, 4"), one_process=True,
)
LOADED = []

def prepare(options):
    LOADED.append(os.getpid())
    return {"machine": "M", "device": "cpu", "framework": "fake 1", "data": "synthetic"}

def measure(points, options):
    (process,) = LOADED
    assert process == os.getpid()
    return (row(options=options, **point) for point in points)

def row(batch_size, options):
    event = os.environ.get("EVENT", "") if batch_size == 3 else ""
    if event == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if event == "error":
        raise ValueError("the model is wrong")
    if event == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if event == "saved":
        path = EXPERIMENT.results_path(options.results_dir, "M")
        assert len(path.read_text().splitlines()) == 1 + 2
    if event == "out of memory":
        return {"status": "out_of_memory", "error": "no room"}
    speed = 1.0 if batch_size > 1 else None
    return {"avg_time_per_epoch": speed, "samples_per_second": 2.0, "extrapolated": False}

if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "fake_test.py"
    path.write_text(SCRIPT)
    return path


def test_the_process_that_prepared_measures_all(script, tmp_path):
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path) == [("1", "ok"), ("2", "ok"), ("3", "ok"), ("4", "ok")]
    assert "batch size 1: too short for a rate, 2.0 samples/s" in done.stdout


def test_a_row_is_saved_before_the_next_is_measured(script, tmp_path):
    """Writing takes a core, which would be missing."""
    assert run(script, tmp_path, event="saved").returncode == 0


@pytest.mark.parametrize(("event", "status"), [("killed", "killed"), ("error", "error")])
def test_a_process_that_ends_keeps_its_rows_and_says_at_which_it_ended(
    script, tmp_path, event, status
):
    done = run(script, tmp_path, event=event)
    assert done.returncode == 1
    assert statuses(tmp_path) == [("1", "ok"), ("2", "ok"), ("3", status)]
    assert rows(tmp_path)[2]["error"]
    assert run(script, tmp_path, "--resume").returncode == 0
    assert statuses(tmp_path)[3:] == [("3", "ok"), ("4", "ok")]


def test_out_of_memory_of_one_point_is_a_row(script, tmp_path):
    assert run(script, tmp_path, event="out of memory").returncode == 0
    expected = [("1", "ok"), ("2", "ok"), ("3", "out_of_memory"), ("4", "ok")]
    assert statuses(tmp_path) == expected


def test_time_that_is_over_ends_it_after_a_row_with_a_speed(script, tmp_path):
    done = run(script, tmp_path, "--max_seconds=0.001")
    assert done.returncode == 0 and "--max_seconds=0.001 are over" in done.stdout
    assert statuses(tmp_path) == [("1", "ok"), ("2", "ok")]


def test_rounds_and_order_are_those_of_every_sweep(script, tmp_path):
    flags = ("--batch_sizes=1,2,3", "--repeats=2", "--shuffle_batch_sizes", "--seed=1")
    run(script, tmp_path, *flags)
    run(script, tmp_path, *flags)
    sizes = [size for size, _ in statuses(tmp_path)]
    assert sizes[:6] == sizes[6:] != ["1", "2", "3"] * 2
    assert sorted(sizes[:3]) == sorted(sizes[3:6]) == ["1", "2", "3"]
    run(script, tmp_path, *flags, "--resume")
    assert len(statuses(tmp_path)) == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_handed_over(script, tmp_path, number):
    process = subprocess.Popen(
        command(script, tmp_path), env={**os.environ, "PYTHONPATH": str(ROOT), "EVENT": "wait"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=hear_signals,
    )  # fmt: skip
    next(line for line in process.stdout if "waiting" in line)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "2 rows of this run are saved under" in errors and "Traceback" not in errors
    assert statuses(tmp_path) == [("1", "ok"), ("2", "ok")]
    deadline = time.monotonic() + 5
    while any(child.is_running() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
