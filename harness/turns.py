"""Starts of scripts for one number each, and how a given time is divided among them."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from harness.cores import usable_memory
from harness.experiment import Experiment
from harness.sweep import memory_ran_out

GUESS = 45.0  # seconds that a start costs, until some were measured
ENOUGH = 3  # costs of scripts, whose median is a better guess: a single one may be far off
SHORTEST = 3.0  # seconds of steady work under which a number is not worth its start


@dataclass(frozen=True)
class Turn:
    """One start of a script for one number."""

    script: Path
    experiment: Experiment
    flags: dict[str, str]

    @property
    def key(self) -> str:
        """What tells it from others when a run goes on later."""
        return " ".join([self.script.name, *self.words(self.flags)])

    @property
    def kind(self) -> str:
        """The key of all turns that differ from this one in nothing but the size."""
        size_flag = self.experiment.varied[-1].flag
        same = {name: value for name, value in self.flags.items() if name != size_flag}
        return " ".join([self.script.name, *self.words(same)])

    @property
    def size(self) -> int | None:
        """The number that is varied last; None where that is a name, or nothing."""
        if not self.experiment.size:
            return None
        digits = self.flags.get(self.experiment.size.flag, "").replace("_", "")
        return int(digits) if digits.isdigit() else None

    @property
    def name(self) -> str:
        """As the terminal says it: `PyTorch, ResNet50, CIFAR100: batch size 32, fp32`."""
        sizes = [(varied.axis, self.flags.get(varied.flag)) for varied in self.experiment.varied]
        parts = [f"{axis} {value}" for axis, value in sizes if value]
        parts += [self.flags["precision"]] if "precision" in self.flags else []
        return f"{self.experiment.title}{': ' if parts else ''}{', '.join(parts)}"

    @staticmethod
    def words(flags: dict) -> list[str]:
        return [f"--{name}={value}" for name, value in flags.items()]


@dataclass
class Budget:
    """Seconds of a run, and what a start of each script costs beside its steady work."""

    total: float
    used_before: float = 0.0  # by the same run, before it was cut short
    costs: dict[str, float] = field(default_factory=dict)  # by script, and by framework
    started: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        return self.used_before + time.monotonic() - self.started

    @property
    def left(self) -> float:
        return self.total - self.used

    def cost(self, turn: Turn) -> float:
        """As measured for this script, else for its framework, else the median of scripts."""
        known = [self.costs.get(turn.script.name), self.costs.get(turn.experiment.backend)]
        scripts = [cost for name, cost in self.costs.items() if name.endswith(".py")]
        guess = statistics.median(scripts) if len(scripts) >= ENOUGH else GUESS
        return next(cost for cost in [*known, guess] if cost)

    def learn(self, turn: Turn, seconds: float) -> None:
        for name in (turn.script.name, turn.experiment.backend):
            self.costs[name] = max(seconds, self.costs.get(name, 0.0))

    def divide(self, turns: list[Turn]) -> tuple[list[Turn], float]:
        """As many of the turns as fit, in their order, and the steady seconds for each."""
        chosen, cost = [], 0.0
        for turn in turns:
            more = cost + self.cost(turn)
            if more + SHORTEST * (len(chosen) + 1) <= self.left:
                chosen.append(turn)
                cost = more
        return chosen, (self.left - cost) / len(chosen) if chosen else 0.0


def memory_taken(turn: Turn, rows: list[dict]) -> list[list]:
    """[kind, size, GB on a processor] of a turn, with None for what did not fit.

    The list is empty where its rows say nothing of larger sizes.
    """
    if turn.size is None or not rows:
        return []
    if all(memory_ran_out(row) for row in rows):
        return [[turn.kind, turn.size, None]]
    peaks = [row["peak_memory_gb"] for row in rows if row.get("device") == "cpu"]
    return [[turn.kind, turn.size, max(map(float, peaks))]] if all(peaks) and peaks else []


def too_large(turn: Turn, taken: list[list]) -> str:
    """Why memory will not hold a turn, by what others of its kind have taken; empty if it may.

    Peak memory grows along a line with the size; on a processor the machine's memory is its end.
    """
    if turn.size is None:
        return ""
    seen = {size: peak for kind, size, peak in taken if kind == turn.kind and size <= turn.size}
    if too_much := [size for size, peak in seen.items() if peak is None]:
        return f"{min(too_much)} did not fit into memory"
    if len(seen) < 2:
        return ""
    (small, less), (large, more) = min(seen.items()), max(seen.items())
    expected = more + (more - less) / (large - small) * (turn.size - large)
    if expected <= usable_memory() / 1e9:
        return ""
    return f"it would take about {expected:.3g} GB, of {usable_memory() / 1e9:.3g} GB of memory"


def run(turn: Turn, steady: float, shared: dict[str, str], log: Path) -> int:
    """Start a script for one number, its words going to the log; returns its exit code.

    Args:
        steady: seconds of steady work.
        shared: flags that every script takes.
    """
    words = turn.words(turn.flags | shared | {"max_seconds": f"{steady:.1f}"})
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join([turn.script.name, *words])}\n")
        file.flush()
        process = subprocess.Popen(
            [sys.executable, str(turn.script), *words], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The script heard Ctrl-C too, but not a SIGTERM to this process; it saves its rows.
            process.terminate()
            process.wait(timeout=30)
            raise


# A run that was cut short goes on


def recall(path: Path, flags: dict[str, str]) -> dict:
    """What an unfinished run with the same flags has done; else a new one."""
    new = {"flags": flags, "done": [], "used": 0.0, "costs": {}, "memory": [], "machines": []}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = {}
    if state.get("flags") == flags:
        return new | state
    return new


def remember(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    temporary.replace(path)
