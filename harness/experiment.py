"""How an experiment describes itself: what is measured, what is varied, which number is its speed.

A script's `EXPERIMENT` is the only place that knows these things; sweep and readers ask it.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.columns import COLUMNS, CONFIGURATION, DEFAULTS, columns_of
from harness.disturbance import disturbed
from harness.results import number_of, to_cell


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
    # Every row's columns after what is varied, in order; which of those that harness.columns does
    # not know are text.
    columns: tuple[str, ...] = COLUMNS
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
    # Raised when a number's meaning changes: rows compare where the first two numbers agree.
    version: str = "0.2.0"

    @property
    def header(self) -> list[str]:
        """The columns of a results file, in order."""
        return list(dict.fromkeys([*(varied.column for varied in self.varied), *self.columns]))

    @property
    def known_columns(self) -> set[str]:
        """Every column that a row of this experiment may have."""
        own = [*self.header, *self.extra_columns, *self.model_flags]
        return {*own, *columns_of("TMRC")}

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

    @property
    def defaults(self) -> dict:
        """Settings with the values that are not named; what is varied is none."""
        flags = {
            name: default[0] if isinstance(default, tuple) else default
            for name, default in self.model_flags.items()
        }
        varied = {varied.column for varied in self.varied}
        known = DEFAULTS | {"compile": self.compile} | flags
        return {name: default for name, default in known.items() if name not in varied}

    def settings(self, row: dict) -> dict:
        """All that changes what a row measures, where the row tells: precision, model flags, ...

        A row of ours that lacks a column is older than the flag, and was measured with its default.
        """
        own = {*self.columns, *self.model_flags} if row.get("project_version") else ()
        values = {
            name: default if not to_cell(row.get(name)) and name in own else row.get(name)
            for name, default in self.defaults.items()
        }
        return {name: value for name, value in values.items() if to_cell(value)}

    def meaning(self, row: dict) -> str:
        """The version that a row's numbers have the meaning of, such as `0.2`; empty of 2023's.

        0.2 left the last, smaller batch of an epoch out, for which a card and a compiler begin
        anew, and took TF32 and the copy to the card out of what is compared: on a processor it
        changed no training's number. It changed llama-bench's figures everywhere.
        """
        version = (row.get("project_version") or "").rpartition(".")[0]
        on_processor = row.get("device") == "cpu" and to_cell(row.get("compile")) != "True"
        return "0.2" if version == "0.1" and self.epochs and on_processor else version

    @property
    def configured(self) -> list[str]:
        """The columns that decide what a row measures."""
        varied = [varied.column for varied in self.varied]
        return list(dict.fromkeys([*varied, *CONFIGURATION, *self.model_flags]))

    def configuration(self, row: dict) -> dict[str, str]:
        """What a row measures: two that agree in it measure the same thing."""
        known = row | self.settings(row) | {"project_version": self.meaning(row)}
        return {name: to_cell(known.get(name)) for name in self.configured}

    def scaling(self, row: dict, others: list[dict]) -> dict:
        """How near a row of several devices comes to so many times its machine's row of one, in %.

        Args:
            others: rows of the machine, the oldest first.
        """
        devices, rate = number_of(row.get("num_devices")), number_of(row.get("samples_per_second"))
        if row["status"] != "ok" or not (devices > 1 and rate > 0):
            return {}
        wanted = self.configuration(row | {"num_devices": 1})
        alike = [
            other
            for other in others
            if other.get("status") == "ok"
            and number_of(other.get("samples_per_second")) > 0
            and self.configuration(other) == wanted
        ]
        if not alike:
            return {}
        best = sorted(alike, key=disturbed, reverse=True)[-1]  # the newest that nobody disturbed
        of_one = number_of(best["samples_per_second"])
        return {"scaling_efficiency_percent": 100 * rate / (devices * of_one)}

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
