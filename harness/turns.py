"""Starts of scripts for one number each, and how a given time is divided among them."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from harness.experiment import Experiment

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
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = {}
    if state.get("flags") == flags:
        return state
    return {"flags": flags, "done": [], "used": 0.0, "costs": {}}


def remember(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    temporary.replace(path)
