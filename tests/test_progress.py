"""What a long silence is filled with: first steps, a line a minute, how long all of it takes."""

import re

import pytest

import harness.clock
import harness.terminal
from harness.clock import Clock
from harness.terminal import Progress, duration


@pytest.fixture
def now(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(harness.terminal.time, "monotonic", lambda: time[0])
    return time


def test_without_a_terminal_a_line_a_minute(now, capsys):
    progress = Progress("batch size 32")
    for second in range(200):
        now[0] = float(second)
        progress(("batch size 32: first step", None) if second == 1 else None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "batch size 32: first step"
    assert lines[1] == "batch size 32: first step (for 119 s)" and len(lines) == 3


def test_on_a_terminal_the_bar_is_enough(now, capsys, monkeypatch):
    monkeypatch.setattr(harness.terminal.sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress("batch size 32")
    now[0] = 300.0
    progress(None)
    assert capsys.readouterr().out == ""


def test_the_whole_sweep_is_estimated_once(now, capsys):
    progress = Progress("batch size 32", of=7)
    now[0] = 20.0
    progress(("batch size 32: warming up", None))
    progress(("batch size 32: 50.0 samples/s", 580.0))
    progress(("batch size 32: 51.0 samples/s", 570.0))
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "about 1 h 10 min in all, if each of 7 takes as long as this one"


def test_a_short_sweep_needs_no_estimate(now, capsys):
    Progress("batch size 32", of=2)(("batch size 32: 50.0 samples/s", 5.0))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(45, "45 s"), (119, "119 s"), (720, "12 min"), (12_000, "3 h 20 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def run(monkeypatch, **arguments) -> list[tuple[str, float | None]]:
    """What a run of 100 steps of a second each tells."""
    told = []
    monkeypatch.setattr(harness.clock, "tell", lambda text, left=None: told.append((text, left)))
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
    assert told[0] == ("batch size 8: first step", None)
    assert told[1] == ("batch size 8: warming up, the first step took 30.0 s", None)
    # After the warm-up: 2 epochs of 100 steps but for the four so far, a second each.
    assert told[4] == ("batch size 8: 8.0 samples/s", pytest.approx(196.0))
    assert re.fullmatch(r"batch size 8: \d+ % done, 8.0 samples/s", told[-1][0])


def test_with_max_seconds_that_is_what_is_left(monkeypatch):
    told = run(monkeypatch, max_seconds=10)
    assert [left for _, left in told if left is not None] == [10]
