"""What a sweep says on the terminal, and the plain verdicts on its numbers."""

import math
import platform
import sys
import time
from pathlib import Path

from tqdm import tqdm

from harness.cores import thread_note
from harness.disturbance import OTHERS_PERCENT, disturbed
from harness.machine import output_of

MINUTE = 60.0
SOON = 5.0  # seconds after which whoever waits wants to know what for


class Progress:
    """Hears what a measuring process tells: a line for each stage that lasts, and every minute.

    On a terminal none where a bar shows how far the stage is.

    Args:
        name: of what is measured.
        of: how many measurements there are, this one included; if any, what all of them will take
            is said as soon as the first steps have shown how long this one does.
    """

    def __init__(self, name: str, of: int = 0):
        self.of = of
        self.started = time.monotonic()
        self.enter(f"{name}: starting", self.started)

    def enter(self, stage: str, now: float) -> None:
        self.stage, self.detail, self.place = stage, "", ""
        self.began, self.due = now, now + SOON

    def __call__(self, message: tuple[str, str, float | None] | str | None) -> None:
        """`message` is what was told, where the process is, or None: see `run_in_fresh_process`."""
        now = time.monotonic()
        if isinstance(message, str):
            self.place = message
        elif message:
            stage, detail, left = message
            if stage != self.stage:
                self.enter(stage, now)
            self.detail = detail
            if self.of and left is not None:
                self.estimate(now - self.started + left)
        if now >= self.due and not (self.detail and sys.stderr.isatty()):
            self.due = now + MINUTE
            how = self.detail or self.place
            so_far = f"{duration(now - self.began)} so far"
            tqdm.write(f"{self.stage} ({', '.join(filter(None, [how, so_far]))})")
            sys.stdout.flush()

    def estimate(self, seconds: float) -> None:
        if self.of * seconds > MINUTE:
            each = f", if each of {self.of} takes as long as this one" if self.of > 1 else ""
            tqdm.write(f"about {duration(self.of * seconds)} in all{each}")
        self.of = 0


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / MINUTE), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def announce(experiment, options, facts: dict, load: float, busiest: str | None) -> None:
    """What will run, on which machine; and what on this machine will disturb the numbers."""
    walked = [(v.flag.replace("_", " "), getattr(options, v.flag)) for v in experiment.varied]
    lists = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in walked)
    model = facts.get("model", experiment.model)
    on = f" on {experiment.dataset}" if experiment.dataset else ""
    kind = ", ".join(filter(None, [f"{facts['data']} data", facts.get("quantization")]))
    print(f"{model}{on} ({kind}), {facts['framework']}")
    precision = f", {options.precision}" if hasattr(options, "precision") else ""
    devices = facts.get("num_devices") or 1
    together = f" ({devices} that train together)" if devices > 1 else ""
    print(f"machine {facts['machine']}, device {facts['device']}{together}{precision}")
    repeats = f", {options.repeats} times" if options.repeats > 1 else ""
    count = getattr(options, "epochs", None)
    epochs = f"; {count} epoch{'s' * (count > 1)} each" if count else ""
    print(f"{lists or f'{len(experiment.points(options))} rows'}{epochs}{repeats}")
    for note in disturbances(facts, load, busiest):
        print(f"Note: {note}")
    print(end="", flush=True)


def disturbances(facts: dict, load: float, busiest: str | None) -> list[str]:
    """Plain sentences on what slows the machine down before anything is measured.

    Args:
        load: percent of the processor that other programs have.
        busiest: name of the one that computes most.
    """
    found = []
    power = facts.get("power") or ""
    if "battery" in power:
        found.append("the machine runs on battery; many are slower then: plug it in")
    if "low_power" in power:
        found.append("low power mode is on: turn it off")
    if platform.system() == "Darwin" and translated():
        found.append(
            "this Python is made for Intel and runs under Rosetta, at a part of the speed and "
            "without the GPU; install one for Apple silicon (arm64)"
        )
    if note := thread_note(facts):
        found.append(note)
    if load > 20:
        most = f", most of all {busiest}" if busiest else ""
        found.append(f"other programs keep the processor {load:.0f} % busy{most}: close them")
    if facts["other_benchmark_running"]:
        found.append("another benchmark of this collection is running: the two slow each other")
    return found


def translated() -> bool:
    """Whether this Python runs under Rosetta, as programs made for Intel do on Apple silicon."""
    return output_of("sysctl", "-n", "sysctl.proc_translated").strip() == "1"


def report(experiment, row: dict) -> None:
    """One line for a finished point, and what a reader must know about its number."""
    name = experiment.name(row)
    if row["status"] != "ok":
        tqdm.write(f"{name}: {row['status']}: {row['error']}")
        return
    speeds = [f"{digits(row[s.column])} {s.unit}" for s in experiment.speeds if row.get(s.column)]
    rate = row.get("samples_per_second")
    rate = f", {rate:,.1f} samples/s" if rate else ""
    tqdm.write(f"{name}: {(speeds or ['too short for a rate'])[0]}{rate}")
    if experiment.one_process:
        return  # in the end it is said of all rows together
    remarks = [row[name] for name in experiment.remarks if row.get(name)]
    for verdict in [*remarks, *verdicts(row, experiment.classes)]:
        tqdm.write(f"    {verdict}")


def digits(number: float) -> str:
    """Two decimals, or three digits where that says nothing."""
    return f"{number:,.2f}" if abs(number) >= 1 or not number else f"{number:.3g}"


def verdicts(row: dict, classes: int = 0) -> list[str]:
    """Plain sentences on what, besides the accelerator, set the numbers of a good row.

    Args:
        classes: among which the model learns to choose, 0 where it does not.
    """
    found = []
    if is_nonsense(row.get("train_loss"), classes):
        found.append(
            f"nonsense: the loss is {row['train_loss']:.4g}: the device computed wrongly, and its "
            "speed means nothing; try another --precision or another version of the framework"
        )
    if input_bound(row):
        found.append(
            f"input bound: the data pipeline, not the accelerator, set this number "
            f"({row['input_bound_percent']:.0f} % slower than on a batch that lies ready)"
        )
    if row.get("communication_percent") is not None:
        share = row.get("scaling_efficiency_percent")
        of_one = f"; {share:.0f} % of so many times one device" if share else ""
        found.append(f"averaging gradients took {row['communication_percent']:.0f} %{of_one}")
    if (row.get("sustained_ratio") or 1) < 0.9:
        found.append(
            f"throttled, or slowed by another program: "
            f"it ended at {row['sustained_ratio']:.2f} of its first speed"
        )
    if (row.get("other_load_percent") or 0) > OTHERS_PERCENT:
        found.append(
            f"disturbed: other programs had {row['other_load_percent']:.0f} % of the processor "
            "while it ran"
        )
    if row.get("other_benchmark_running"):
        found.append("disturbed: another benchmark of this collection was running")
    if isinstance(row.get("disturbance"), str):
        found.append(f"unusual: {row['disturbance']}")
    if (row.get("swap_written_gb") or 0) > 0.01:
        found.append(f"swapped: {row['swap_written_gb']:.2f} GB were written to swap meanwhile")
    if row.get("extrapolated"):
        found.append(
            "extrapolated: the epoch time is computed from the steady rate (--max_seconds)"
        )
    if row["data"] == "synthetic":
        found.append("synthetic data")
    return found


def is_nonsense(loss: float | None, classes: int) -> bool:
    """Whether a training's loss is no number, or far over that of guessing among `classes`.

    Guessing costs ln(classes). Trainings that went well have been seen to begin with a mean loss of
    up to 1.9 times that, before they have learnt to guess.
    """
    if loss is None:
        return False
    return not math.isfinite(loss) or (classes > 1 and loss > 3 * math.log(classes))


def input_bound(row) -> bool:
    """Whether the data pipeline made it over 10 % slower, and by more than the 95 % interval.

    Of a run that others disturbed that cannot be told.
    """
    if disturbed(row) or not (row.get("input_bound_percent") or 0) > 10:
        return False
    rate, half_width = row["samples_per_second"], row["samples_per_second_ci95"] or 0
    # "Not at least", because a row read back has NaN where it has no interval.
    return not rate + half_width >= row["compute_samples_per_second"]


def summarize(experiment, rows: list[dict], files: list[Path], options) -> None:
    """The table at the end, and the files that hold the rows."""
    if not rows:
        print("Nothing was left to measure.")
        return
    print("\n" + "\n".join(experiment.summary(rows, options) or [table_of(experiment, rows)]))
    print("\nResults: " + ", ".join(map(str, files)))


def table_of(experiment, rows: list[dict]) -> str:
    import pandas as pd

    shown = {varied.column: varied.axis for varied in experiment.varied}
    for speed in experiment.speeds:
        name = f"{speed.name}, {speed.unit}" if speed.name else speed.unit
        shown |= {speed.column: name, f"{speed.column}_ci95": "+/-"}
    shown |= {
        "samples_per_second": "samples/s",
        "compute_samples_per_second": "without loading",
        "peak_memory_gb": "peak GB",
        "status": "status",
    }
    table = pd.DataFrame(rows).fillna(math.nan)  # an empty column of None would say so
    table = table[[name for name in shown if name in table]].rename(columns=shown)
    return table.to_string(index=False, na_rep="", float_format=digits)
