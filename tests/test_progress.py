"""What a long silence is filled with: first steps, a line a minute, how long all of it takes."""

import re
import sys
from pathlib import Path

import pytest

import harness.clock
import harness.process
import harness.terminal
from harness.clock import Clock
from harness.terminal import Progress, duration


@pytest.fixture
def now(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(harness.terminal.time, "monotonic", lambda: time[0])
    return time


def hear(progress, now, until, message=None):
    """Second by second the message, with None between."""
    while now[0] < until:
        now[0] += 1.0
        progress(message if now[0] % 2 else None)


@pytest.mark.parametrize("on_terminal", [True, False])
def test_every_stage_over_five_seconds_says_itself(now, capsys, monkeypatch, on_terminal):
    monkeypatch.setattr(harness.terminal.sys.stderr, "isatty", lambda: on_terminal, raising=False)
    progress = Progress("preparing")
    hear(progress, now, 7, "importing torch")
    progress(("batch size 32: short", "", None))
    hear(progress, now, 10)
    progress(("batch size 32: first step", "", None))
    hear(progress, now, 80)
    assert capsys.readouterr().out.splitlines() == [
        "preparing: starting (importing torch, 5 s so far)",
        "batch size 32: first step (5 s so far)",
        "batch size 32: first step (65 s so far)",
    ]


def test_without_a_terminal_a_line_a_minute(now, capsys):
    progress = Progress("batch size 32")
    for percent in range(100):
        progress(("batch size 32: training", f"{percent} % done", None))
        now[0] += 2.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "batch size 32: training (3 % done, 6 s so far)"
    assert lines[1] == "batch size 32: training (33 % done, 66 s so far)" and len(lines) == 4


def test_on_a_terminal_the_bar_is_enough(now, capsys, monkeypatch):
    monkeypatch.setattr(harness.terminal.sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress("batch size 32")
    hear(progress, now, 300, ("batch size 32: training", "40 % done", None))
    assert capsys.readouterr().out == ""


def test_the_package_that_is_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "slow_package.py").write_text("from harness.process import whereabouts\n"
        "import sys\nfound = whereabouts(sys._getframe())\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(harness.process, "ROOT", Path(__file__).parent)
    import slow_package

    assert slow_package.found == "importing slow_package"


def test_the_function_that_runs_is_named(monkeypatch):
    monkeypatch.setattr(harness.process, "ROOT", Path(__file__).parent)

    def build_model():
        return [harness.process.whereabouts(sys._getframe()) for _ in range(1)]

    assert build_model() == ["build model"]


def test_the_whole_sweep_is_estimated_once(now, capsys):
    progress = Progress("batch size 32", of=7)
    now[0] = 20.0
    progress(("batch size 32: warming up", "", None))
    progress(("batch size 32: training", "50.0 samples/s", 580.0))
    progress(("batch size 32: training", "51.0 samples/s", 570.0))
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "about 1 h 10 min in all, if each of 7 takes as long as this one"


def test_a_short_sweep_needs_no_estimate(now, capsys):
    Progress("batch size 32", of=2)(("batch size 32: training", "50.0 samples/s", 5.0))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(45, "45 s"), (119, "119 s"), (720, "12 min"), (12_000, "3 h 20 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def run(monkeypatch, **arguments) -> list[tuple[str, str, float | None]]:
    """What a run of 100 steps of a second each tells."""
    told = []
    monkeypatch.setattr(
        harness.clock,
        "tell",
        lambda stage, detail="", left=None: told.append((stage, detail, left)),
    )
    time = [0.0]
    clock = Clock(8, 800, 2, lambda: None, now=lambda: time[0], **arguments)
    clock.start()
    for step in range(100):
        time[0] += 1.0 if step else 30.0
        if clock.step(8):
            break
    clock.stop()
    return told


def test_first_steps_are_told_and_what_is_left(monkeypatch):
    told = run(monkeypatch)
    assert told[0] == ("batch size 8: first step", "", None)
    assert told[1] == ("batch size 8: warming up", "the first step took 30.0 s", None)
    # After the warm-up: 2 epochs of 100 steps but for the four so far, a second each.
    assert told[4] == ("batch size 8: training", "8.0 samples/s", pytest.approx(196.0))
    assert told[-1][0] == "batch size 8: training"
    assert re.fullmatch(r"\d+ % done, 8.0 samples/s", told[-1][1])


def test_with_max_seconds_that_is_what_is_left(monkeypatch):
    told = run(monkeypatch, max_seconds=10)
    assert [left for *_, left in told if left is not None] == [10]
