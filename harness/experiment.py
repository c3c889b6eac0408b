"""How an experiment describes itself: what is measured, what is varied, which number is its speed.

A script's `EXPERIMENT` is the only place that knows these things; sweep and readers ask it.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.results import COLUMNS, RANK_COLUMNS


@dataclass(frozen=True)
class Varied:
    """A column through whose values the sweep walks, and the flag that lists them."""

    column: str  # such as `batch_size`
    flag: str  # such as `batch_sizes`
    default: str  # such as "32, 64"
    label: str  # a value in a table, such as "batch {}"
    axis: str  # what a chart's axis says, such as "batch size"
    choices: tuple[str, ...] = ()  # names; whole numbers where there are none
    numbers: bool = False  # whole numbers beside the names; then columns hold both as text
    in_label: bool = False  # in charts part of a bar's name, instead of a panel of its own

    def named(self, value) -> str:
        """The value as tables say it: `batch 32`."""
        return self.label.format(value)


@dataclass(frozen=True)
class Speed:
    """A column that says how fast a machine was; its interval is in `<column>_ci95`."""

    column: str
    unit: str  # such as "s per epoch"
    axis: str  # what a chart's axis says, such as "seconds per epoch"
    title: str  # such as "time per epoch"
    higher_is_better: bool = False
    name: str = ""  # tells it from the other speeds of the same experiment, such as "predict"

    @property
    def better(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"


TIME_PER_EPOCH = Speed("avg_time_per_epoch", "s per epoch", "seconds per epoch", "time per epoch")


def batch_sizes(default: str) -> tuple[Varied]:
    """The one thing that most experiments vary."""
    return (Varied("batch_size", "batch_sizes", default, "batch {}", "batch size"),)


@dataclass(frozen=True)
class Experiment:
    """What is measured, the defaults of its command line, and how its rows are read."""

    title: str  # such as "PyTorch, ResNet50, CIFAR100"
    chart: str  # its chart is <chart>.png; its name in tables
    description: str
    backend: str
    task: str
    model: str
    dataset: str = ""
    input_size: int = 0
    samples: int = 0  # of the training set
    classes: int = 0  # among which it is learnt to choose; 0 where it is not
    varied: tuple[Varied, ...] = ()  # the last one is a size: beyond one too large, none is tried
    epochs: int | None = None  # None: not a training under the shared clock
    compile: bool = False  # whether --compile is what a framework's users do by default
    speeds: tuple[Speed, ...] = (TIME_PER_EPOCH,)  # the first one stands for the experiment
    # Flags that change what is measured, with their defaults: each is a column too, and part of a
    # row's configuration. Numbers, True or False, or a tuple of choices, the first the default.
    model_flags: dict[str, int | float | bool | tuple[str, ...]] = field(default_factory=dict)
    # Flags that change nothing that is measured, with their help.
    switches: dict[str, str] = field(default_factory=dict)
    # `add_flags(parser)` adds those that only this experiment has, or has in another form;
    # `settle_flags(options)` settles what flags leave open, or raises UsageError.
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None
    settle_flags: Callable[[argparse.Namespace], None] | None = None
    # Whether one process measures all points, and hands over their rows: it loads a model once.
    one_process: bool = False
    # Flags of a first look: seconds on a slow machine, where the defaults take many minutes.
    quick: dict[str, str] = field(default_factory=dict)
    # Every row's columns, in order, and which of them that only this experiment has are text.
    columns: tuple[str, ...] = tuple(COLUMNS)
    extra_columns: tuple[str, ...] = ()  # not in every row
    text_columns: tuple[str, ...] = ()
    # One of what is varied whose choices belong together, such as the networks of a suite: charts
    # have it along their axis, and the geometric mean over all of it, not less, is a score.
    whole_set: str = ""
    # Text columns that a reader must see beside the number; empty where there is nothing to say.
    remarks: tuple[str, ...] = ()
    folder: str = ""  # of its results; default: results_<backend>_<task>
    place: int = 1000  # the least is measured first, in the order of the README's table
    # Its rows are answers of a language model, of which a number is the mean of many.
    generations: bool = False

    @property
    def known_columns(self) -> set[str]:
        """Every column that a row of this experiment may have."""
        varied = [varied.column for varied in self.varied]
        own = [*self.columns, *self.extra_columns, *self.model_flags, *varied]
        return {*COLUMNS, *RANK_COLUMNS, *own}

    @property
    def results_folder(self) -> str:
        return self.folder or f"results_{self.backend}_{self.task}"

    @property
    def along(self) -> Varied:
        """What a chart has along its axis: the whole set, else what is varied last."""
        return next((v for v in self.varied if v.column == self.whole_set), self.varied[-1])

    @property
    def walked(self) -> str:
        """What a sweep walks through, as flags call it: `batch_sizes`."""
        return self.varied[-1].flag

    @property
    def size(self) -> Varied | None:
        """What is varied last, where that is a number: beyond one too large, none is tried."""
        *_, last = self.varied or (None,)
        return None if last is None or last.choices else last

    def points(self, options: argparse.Namespace) -> list[dict]:
        """What is measured once, in order: a value of each column that is varied."""
        columns = [varied.column for varied in self.varied]
        lists = [getattr(options, varied.flag) for varied in self.varied]
        return [dict(zip(columns, values, strict=True)) for values in itertools.product(*lists)]

    def results_path(self, results_dir: Path, machine: str, model: str | None = None) -> Path:
        """The one CSV file of this experiment on `machine`.

        Args:
            model: the one that was measured, where that is the user's choice.
        """
        name = f"{machine}_{self.dataset}_{self.model}_{self.input_size}_{self.backend}_results.csv"
        return results_dir / self.results_folder / name

    def flag_defaults(self) -> dict:
        """Flags with the values that are not named in a configuration."""
        return {"compile": self.compile} | {
            name: default[0] if isinstance(default, tuple) else default
            for name, default in self.model_flags.items()
        }

    def test(self, row: dict, speed: Speed) -> str:
        """What a number of a row is called in tables, such as `batch 32`."""
        parts = [varied.named(row[varied.column]) for varied in self.varied]
        return ", ".join([*parts, *filter(None, [speed.name])])

    def name(self, point: dict) -> str:
        """What the terminal calls a point, or the row of one: `batch size 32`."""
        return ", ".join(f"{varied.axis} {point[varied.column]}" for varied in self.varied)

    def summary(self, rows: list[dict], options: argparse.Namespace) -> list[str]:
        """What is said of all rows in the end; nothing where a table of them says it."""
        return []
