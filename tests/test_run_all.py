"""One command for a machine: it keeps its time, repeats nothing, and says what it leaves out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import result_files as files
from signals import hear_signals

import run_all
from harness.columns import COLUMNS
from harness.experiment import Experiment, batch_sizes
from harness.launch import missing_packages
from harness.process import UserError
from harness.results import append_row, read_rows
from harness.turns import Budget, Turn, memory_taken, recall, too_large
from reporting.speeds import neighbours
from reporting.tables import load_results

ROOT = Path(__file__).parent.parent
SCRIPT = '''# /// script
# dependencies = ["tqdm"]
# ///
"""Does next to nothing, in a given time."""

import time
import utils

utils.other_load = lambda: (0.0, None)

EXPERIMENT = utils.Experiment(
    title="Idle", chart="idle", description=__doc__, backend="fake", task="cv", dataset="none",
    model="tiny", input_size=8, epochs=1, varied=utils.batch_sizes("1, 2, 3"), samples=1000,
)


def prepare(options):
    return {"machine": "M", "device": "cpu", "framework": "fake 1", "data": "synthetic"}


def measure(batch_size, options):
    time.sleep(options.max_seconds)
    return {"avg_time_per_epoch": 1.0, "samples_per_second": 2.0, "extrapolated": True}


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
'''


@pytest.fixture
def copy(tmp_path):
    """The project with nothing but an experiment that takes no time of its own."""
    folder = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".*", "results", "data", "quickstart", "tests", "*_test*.py")
    shutil.copytree(ROOT, folder, ignore=ignored)
    (folder / "idle_test.py").write_text(SCRIPT)
    text = (folder / "run_all.py").read_text()
    quick = text.replace("PICTURES = 20.0", "PICTURES = 5.0").replace("LOOK = 120.0", "LOOK = 1.0")
    (folder / "run_all.py").write_text(quick)
    turns = (folder / "harness/turns.py").read_text()
    shorter = turns.replace("GUESS = 45.0", "GUESS = 2.0").replace(
        "SHORTEST = 3.0", "SHORTEST = 1.0"
    )
    (folder / "harness/turns.py").write_text(shorter)
    return folder


def command(copy, *flags):
    return [sys.executable, copy / "run_all.py", f"--results_dir={copy / 'results'}", *flags]


def sizes(copy):
    (path,) = (copy / "results").rglob("*_results.csv")
    return [row["batch_size"] for row in read_rows(path)[1]]


def test_it_ends_in_its_time_with_every_number_and_the_charts(copy):
    started = time.monotonic()
    done = subprocess.run(command(copy, "--minutes=0.5"), capture_output=True, text=True)
    took = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert sizes(copy) == ["1", "2", "3"]
    assert 0.8 * 30 < took < 1.3 * 30  # 10 % of a time worth the name; starts weigh more here
    assert "3 of 3 numbers" in done.stdout and "no other machine to compare with" in done.stdout
    assert (copy / "results/idle.png").exists() and not (copy / "results/.run_all.json").exists()


def test_what_was_cut_short_goes_on_and_repeats_nothing(copy):
    flags = ["--minutes=0.5"]
    process = subprocess.Popen(
        command(copy, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=hear_signals,
    )  # fmt: skip
    state = copy / "results/.run_all.json"
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "The same command goes on from here" in errors
    before = sizes(copy)
    assert json.loads(state.read_text())["done"]
    done = subprocess.run(command(copy, *flags), capture_output=True, text=True)
    assert done.returncode == 0 and "Going on:" in done.stdout
    assert len(sizes(copy)) > len(before) and len(set(sizes(copy))) == len(sizes(copy))


def turn(name="a_test.py", **flags):
    experiment = Experiment(
        "A", "a", "", "fake", "cv", "m", "x", varied=batch_sizes("1"), epochs=1
    )  # fmt: skip
    return Turn(Path(name), experiment, flags)


def run_with(monkeypatch, options, turns, script=lambda turn: None):
    """Run the turns in this process, a function in place of each script; returns its flags."""
    calls = []

    def stand_in(turn, steady, shared, log):
        calls.append(turn.flags | shared)
        script(turn)
        return 0

    monkeypatch.setattr(run_all, "run", stand_in)
    state = recall(run_all.state_path(options), {})
    run_all.run_turns(turns, Budget(1000.0), state, options)
    return calls


def options_of(tmp_path, **flags):
    words = [f"--{name}={value}" for name, value in flags.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run_all.py", f"--results_dir={tmp_path}", *words])
        return run_all.parse_arguments()


def test_language_models_compute_where_asked_too(tmp_path, monkeypatch):
    model = replace(turn(), experiment=replace(turn().experiment, generations=True))
    options = options_of(tmp_path, device="cpu")
    assert [call["device"] for call in run_with(monkeypatch, options, [model])] == ["cpu"]


def test_time_is_divided_among_what_fits():
    turns = [turn(batch_sizes=str(size)) for size in range(10)]
    chosen, steady = Budget(100.0, costs={"a_test.py": 20.0}).divide(turns)
    assert len(chosen) == 4 and steady == pytest.approx(5, abs=0.1)
    chosen, steady = Budget(500.0, costs={"fake": 20.0}).divide(turns)
    assert len(chosen) == 10 and steady == pytest.approx(30, abs=0.1)
    assert Budget(10.0).divide(turns) == ([], 0.0)


def test_one_costly_script_says_nothing_of_the_others():
    turns = [turn(f"other_{number}.py") for number in range(12)]
    costly = {"slow_test.py": 170.0, "slow": 170.0}
    assert len(Budget(300.0, costs=costly).divide(turns)[0]) == 6
    cheap = {f"quick_{number}_test.py": 10.0 for number in range(2)}
    assert len(Budget(300.0, costs=costly | cheap).divide(turns)[0]) == 12


def test_rounds_begin_with_one_number_of_each_framework(tmp_path, monkeypatch):
    monkeypatch.setattr(run_all, "mlx_computes_on", lambda device: "mps")
    options = options_of(tmp_path, minutes=1)
    experiments, _ = run_all.choose_experiments(options)
    turns = run_all.all_turns(experiments, options)
    assert turns[0].script.name == "pytorch_test_computer_vision_cifar100.py"
    backends = [turn.experiment.backend for turn in turns]
    first = backends[: len(set(backends))]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(
    ("flags", "device", "measured"),
    [
        ({}, "cpu", False),
        ({}, "mps", True),
        ({}, None, True),  # its scripts say what is wrong
        ({"device": "cpu"}, "cpu", False),
        ({"only": "cifar100"}, "cpu", False),
        ({"only": "torch, mlx"}, "cpu", True),
    ],
)
def test_mlx_on_a_processor_is_left_out_unless_named(
    tmp_path, monkeypatch, flags, device, measured
):
    asked = []
    monkeypatch.setattr(run_all, "missing_packages", lambda script: [])
    monkeypatch.setattr(run_all, "mlx_computes_on", lambda name: asked.append(name) or device)
    experiments, left_out = run_all.choose_experiments(options_of(tmp_path, **flags))
    assert ("mlx" in {experiment.backend for experiment in experiments}) is measured
    assert [line.partition(" ")[0] for line in left_out] == ([] if measured else ["MLX"])
    assert asked in ([], [flags.get("device", "auto")])


@pytest.mark.skipif(find_spec("mlx") is None, reason="MLX is not installed")
def test_mlx_says_what_it_computes_on():
    assert run_all.mlx_computes_on("cpu") == "cpu"


def test_what_is_not_installed_is_left_out_with_the_line_that_installs_it(tmp_path):
    script = tmp_path / "x_test.py"
    script.write_text(
        '# /// script\n# dependencies = [\n#   "tqdm", "no-such-thing>=2",\n'
        "#   \"never; sys_platform == 'plan9'\",\n# ]\n# ///\n"
    )
    assert missing_packages(script) == ["no-such-thing"]


@pytest.mark.parametrize(
    ("rows", "left_out"),
    [
        ([(1, 1.0, "ok"), (2, 1.1, "ok")], False),
        ([(1, 1.0, "ok"), (2, 1e4, "ok")], True),  # 2 took nearly all there is
        ([(1, 1e4, "ok")], False),  # one number makes no line
        ([(2, None, "out_of_memory")], True),
        ([(64, None, "out_of_memory")], False),
    ],
)
def test_sizes_that_memory_cannot_hold_are_left_out(rows, left_out):
    taken = []
    for size, peak, status in rows:
        row = files.training_row("M", size, 1.0, 10, device="cpu", peak_memory_gb=peak)
        ran = turn(batch_sizes=str(size), precision="fp32")
        taken += memory_taken(ran, [row | {"status": status, "error": ""}])
    assert bool(too_large(turn(batch_sizes="32", precision="fp32"), taken)) is left_out
    assert not too_large(turn(batch_sizes="32", precision="bf16"), taken)


def write_row(folder, machine, size, dataset="x", **changed):
    path = folder / "results_fake_cv" / f"{machine}_{dataset}_m_0_fake_results.csv"
    append_row(path, files.training_row(machine, size, 1.0, 10, **changed), COLUMNS)


TOO_LARGE = {"status": "out_of_memory", "error": "out of memory", "avg_time_per_epoch": None}


def test_rows_that_are_not_of_this_run_leave_nothing_out(tmp_path, monkeypatch):
    write_row(tmp_path, "M", 1, **TOO_LARGE, project_version="0.1.0")
    write_row(tmp_path, "Other", 1, **TOO_LARGE)
    write_row(tmp_path, "Other", 1, dataset="y", **TOO_LARGE)
    older = tmp_path / "results_fake_cv/Apple_M1_x_m_0_fake_results.csv"
    older.write_text("batch_size,avg_time_per_epoch\n1,FAILED\n")
    turns = [turn(batch_sizes=str(size), precision="fp32") for size in (1, 2)]
    calls = run_with(monkeypatch, options_of(tmp_path), turns)
    assert [call["batch_sizes"] for call in calls] == ["1", "2"]


def test_what_memory_cannot_hold_is_said_once_and_of_its_kind_only(tmp_path, monkeypatch, capsys):
    def script(turn):
        small = turn.size < 2 or turn.flags["precision"] == "bf16"
        write_row(tmp_path, "M", turn.size, **({} if small else TOO_LARGE))

    turns = [
        turn(batch_sizes=str(size), precision=precision)
        for size in (1, 2, 4)
        for precision in ("fp32", "bf16")
    ]
    calls = run_with(monkeypatch, options_of(tmp_path), turns, script)
    sizes = {name: [c["batch_sizes"] for c in calls if c["precision"] == name]
             for name in ("fp32", "bf16")}  # fmt: skip
    assert sizes == {"fp32": ["1", "2"], "bf16": ["1", "2", "4"]}
    said = capsys.readouterr().out
    assert said.count("left out: A: batch size 4, fp32: 2 did not fit into memory") == 1


def test_what_did_not_fit_is_known_when_the_run_goes_on(tmp_path, monkeypatch):
    options = options_of(tmp_path)
    turns = [turn(batch_sizes=str(size)) for size in (2, 4)]
    run_with(monkeypatch, options, turns[:1], lambda _: write_row(tmp_path, "M", 2, **TOO_LARGE))
    assert run_all.still_to_do(turns, recall(run_all.state_path(options), {})) == []


@pytest.mark.parametrize("machine", ["M", "New"])
def test_a_number_is_found_whatever_the_clock_says(tmp_path, monkeypatch, capsys, machine):
    write_row(tmp_path, "M", 1, started_at="2026-11-24T12:00:00+00:00")

    def script(turn):  # the clock was set back while it ran
        write_row(tmp_path, machine, 1, avg_time_per_epoch=7.5, started_at="2020-01-01T00:00+00:00")

    options = options_of(tmp_path)
    run_with(monkeypatch, options, [turn(batch_sizes="1")], script)
    assert "A: batch size 1: 7.5 s per epoch" in capsys.readouterr().out
    assert recall(run_all.state_path(options), {})["machines"] == [machine]


def test_the_newest_row_that_names_a_machine_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_all, "find_experiments", lambda: [turn().experiment])
    older = tmp_path / "results_fake_cv/Apple_M1_x_m_0_fake_results.csv"
    older.parent.mkdir()
    older.write_text("batch_size,avg_time_per_epoch\n1,FAILED\n")
    with pytest.raises(UserError, match="no results there"):
        run_all.newest_machine(options_of(tmp_path))
    write_row(tmp_path, "B", 1, started_at="2026-11-24T12:00:00+00:00")
    write_row(tmp_path, "A", 1, started_at="2026-11-23T12:00:00+00:00")
    assert run_all.newest_machine(options_of(tmp_path)) == "B"


def test_the_nearest_machines_are_named_with_their_ratio(tmp_path):
    for machine, speed in (("A", 1.0), ("B", 2.0), ("C", 40.0)):
        files.write_machine(tmp_path, machine, speed)
    (line,) = neighbours(load_results(tmp_path), "A", most=1)
    assert line == "A is 0.50 times as fast as B, over 7 experiments"


def test_bad_usage_is_one_line():
    done = subprocess.run(
        [sys.executable, ROOT / "run_all.py", "--only=nothing"], capture_output=True, text=True
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
