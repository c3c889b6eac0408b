"""The sweep: points of an experiment in fresh processes, each row saved the moment it is there.

A point is one value of each column that the experiment varies, such as {"batch_size": 32}.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from harness.awake import Pauses
from harness.clock import SUSPENDED
from harness.endings import BROKEN_HEAP
from harness.experiment import Experiment
from harness.nvidia import driver_version
from harness.process import FreshProcess, UserError, hand_over, value_of
from harness.results import append_row
from harness.soak import COLD
from harness.swap import swapped_out, written_gb
from harness.terminal import Progress

# Seconds without a sign of life, such as a step that ended: a first step compiles, a step of a
# large batch on a slow processor takes minutes. A fit that is no training has no steps.
PATIENCE, PATIENCE_WITH_FITS = 1800.0, 7200.0
# Of a try whether a batch size fits.
TRIAL = {"epochs": 1, "max_seconds": 1.0, "thermal_protocol": COLD}


def settle(experiment: Experiment, options, prepare: Callable, process: FreshProcess) -> dict:
    """What a fresh process finds out before the first point: machine, device, data.

    Under the name of what the experiment varies, `prepare` may return the columns that only the
    rows of one value share: {"backend": {"torch": {...}, "jax": {...}}}. Other values are left out.
    Under `found` it may return the values to walk for flags such as --providers=auto.

    Returns:
        The columns that every row shares, and those.

    Raises:
        UserError: what `prepare` raised, or that it ended otherwise.
    """
    facts = value_of(process.call(prepare, options, progress=Progress("preparing")))
    options.data = facts["data"]
    for varied in experiment.varied:
        if varied.column in facts:
            there = [v for v in getattr(options, varied.flag) if v in facts[varied.column]]
            setattr(options, varied.flag, there)
    for flag, values in facts.pop("found", {}).items():
        setattr(options, flag, values)
    facts["machine"] = options.machine_name or facts["machine"]
    shared = set(experiment.configured) - {varied.column for varied in experiment.varied}
    flags = {name: getattr(options, name) for name in shared if hasattr(options, name)}
    one_device = {"num_devices": 1} if experiment.epochs else {}
    return {**one_device, **flags, **facts, "project_version": experiment.version}


def goes_on(experiment: Experiment, options) -> bool:
    """Whether the process that has settled machine and data may measure the first point.

    A training's, where every import counts twice otherwise. Other libraries read the number of
    threads as they are imported, ranks have processes of their own, and a search for the largest
    batch size wants all memory. One process that measures all points has loaded the model.
    """
    alone = getattr(options, "num_devices", 1) == getattr(options, "num_machines", 1) == 1
    training = bool(experiment.epochs) and alone and not getattr(options, "find_max_batch_size", 0)
    return training or experiment.one_process


def points(experiment: Experiment, options: argparse.Namespace) -> list[tuple[int, dict]]:
    """(round, point) in the order of measuring; every round has each point once."""
    order = random.Random(options.seed)
    walk = []
    for round_ in range(options.repeats):
        once = experiment.points(options)
        if options.shuffle:
            order.shuffle(once)
        walk += [(round_, point) for point in once]
    return walk


def measure_all(
    experiment: Experiment,
    options,
    facts: dict,
    measure: Callable,
    saved: list[dict],
    keep: Callable[[dict], None],
    process=None,
) -> None:
    """Measure every point; after one that ran out of memory, larger ones are skipped.

    Args:
        facts: the columns that every row shares.
        measure: see `hand_over_rows`.
        saved: rows of earlier runs, for --resume.
        keep: gets each row as soon as it is there.
        process: a `FreshProcess` for the first points; all others have their own.
    """
    walk = points(experiment, options)
    turns = [walk] if experiment.one_process else [[each] for each in walk]
    too_large = {}
    unit = f" {experiment.walked.replace('_', ' ')}"

    def complete(row: dict) -> None:
        if memory_ran_out(row) and experiment.size:
            *kind, value = (row[varied.column] for varied in experiment.varied)
            too_large[tuple(kind)] = min(value, too_large.get(tuple(kind), value))
        keep(row)
        bar.update()

    measured_before = False
    with tqdm(total=len(walk), desc="sweep", unit=unit, disable=None) as bar:
        for number, turn in enumerate(turns):
            left = not_skipped(experiment, options, facts, saved, turn, too_large)
            bar.update(len(turn) - len(left))
            if not left:
                continue
            if measured_before:
                time.sleep(options.cooldown)
            first, measured_before = not measured_before, True
            progress = Progress(experiment.name(left[0]), of=len(turns) - number if first else 0)
            measure_points(experiment, left, options, facts, measure, complete, progress, process)
            process = None


def not_skipped(
    experiment: Experiment, options, facts: dict, saved: list[dict], turn: list, too_large: dict
) -> list[dict]:
    """The points of a turn that are to be measured; of others it is said why they are not."""
    left = []
    for round_, point in turn:
        *kind, value = point.values()
        limit = too_large.get(tuple(kind))
        row = facts_of(point, facts)
        wanted, whole = experiment.configuration(row), not options.max_seconds
        if limit is not None and value >= limit:
            why = f"{limit} did not fit into memory"
        elif options.resume and good_rows(experiment, saved, wanted, whole) > round_:
            why = "it has a good row already (--resume)"
        else:
            left.append(point)
            continue
        tqdm.write(f"{experiment.name(point)}: skipped, {why}")
    return left


def facts_of(point: dict, facts: dict) -> dict:
    """The columns of a point's row that are known before it is measured."""
    row = dict(facts)
    for column, value in point.items():
        if isinstance(facts.get(column), dict):
            row |= facts[column][value]
    return row | point


def good_rows(experiment: Experiment, saved: list[dict], wanted: dict, whole: bool) -> int:
    """How many `ok` rows in `saved` have the `wanted` configuration, measured whole if need be."""
    return sum(
        old.get("status") == "ok"
        and experiment.configuration(old) == wanted
        and not (whole and old.get("extrapolated") == "True")
        for old in saved
    )


class Meanwhile:
    """What this process sees of the machine while another one measures a point."""

    def __init__(self):
        self.pauses = Pauses()
        self.begin()

    def begin(self) -> None:
        self.started = datetime.now(UTC)
        self.swapped = swapped_out()

    def columns(self) -> dict:
        """Columns of the time since the last ones; those that are not known are left out."""
        found = {
            "started_at": self.started.isoformat(timespec="seconds"),
            "disturbance": SUSPENDED if self.pauses.since_last() else None,
            "swap_written_gb": written_gb(self.swapped, swapped_out()),
        }
        self.begin()
        return {name: value for name, value in found.items() if value is not None}


def measure_points(
    experiment: Experiment,
    points: list[dict],
    options,
    facts: dict,
    measure: Callable,
    keep: Callable[[dict], None],
    progress: Progress,
    process=None,
) -> None:
    """Have one process measure points, a fresh one or that given; `keep` gets the row of each.

    Where it ends before it has measured all, the row of the next point says how; that is the last.
    """
    left, meanwhile = list(points), Meanwhile()

    def complete(columns: dict) -> None:
        point = left.pop(0) if left else points[-1]
        while left and any(columns.get(name, value) != value for name, value in point.items()):
            point = left.pop(0)  # the row before stands for it
        seen = {n: value for n, value in meanwhile.columns().items() if n in experiment.columns}
        keep({**facts_of(point, facts), **seen, "status": "ok", **columns})
        if left:
            progress.enter(experiment.name(left[0]), time.monotonic())

    patience = PATIENCE if hasattr(options, "epochs") else PATIENCE_WITH_FITS
    asked = measure, points, options, experiment.speeds[0].column
    with process or FreshProcess() as process:
        outcome = process.call(
            hand_over_rows, *asked, progress=progress, patience=patience, on_row=complete
        )
    if outcome["status"] != "ok":
        complete(failure(outcome, facts))
    elif outcome["value"]:
        tqdm.write(outcome["value"])


def hand_over_rows(measure: Callable, points: list[dict], options, speed: str) -> str:
    """In the fresh process: hand over each row as soon as it is there.

    Args:
        measure: `measure(points, options)`: an iterator of rows. What it does before it returns one
            is no part of --max_seconds.
        speed: a column that says how fast it was; none ends before a row has it.

    Returns:
        Why not all points were measured; empty where they were.
    """
    rows = measure(points, options)
    start, has_speed = time.monotonic(), False
    for number, row in enumerate(rows, start=1):
        hand_over(row)
        has_speed |= bool(row.get(speed))
        if number == len(points):
            continue
        if options.max_seconds and has_speed and time.monotonic() - start >= options.max_seconds:
            return f"--max_seconds={options.max_seconds:g} are over: the rest is left out"
        time.sleep(options.cooldown)
    return ""


def one_by_one(measure: Callable, points: list[dict], options) -> Iterator[dict]:
    """The rows of points that know nothing of each other."""
    return (measure(*point.values(), options) for point in points)


def failure(outcome: dict, facts: dict) -> dict:
    """The columns that say how a process ended."""
    error = outcome["error"]
    if BROKEN_HEAP.search(error):
        driver = driver_version()
        error += f"; {facts['framework']}" + (f", NVIDIA driver {driver}" if driver else "")
    if outcome["status"] == "error":
        tqdm.write(outcome.get("details", error), file=sys.stderr)
    status = "error" if outcome["status"] == "user_error" else outcome["status"]
    return {"status": status, "error": error}


def find_max_batch_size(experiment: Experiment, options, facts: dict, measure: Callable) -> int:
    """The largest batch size that fits: doubled from the first one given, then bisected.

    Raises:
        UserError: not even that one fits, or a try fails for another reason than memory.
    """
    trial = argparse.Namespace(**{**vars(options), **TRIAL})
    rows = []
    fits, too_large = 0, experiment.samples + 1
    size = min(options.batch_sizes[0], experiment.samples)
    while too_large - fits > max(1, fits // 50):  # to 2 %
        progress = Progress(f"batch size {size}")
        point = {"batch_size": size}
        measure_points(experiment, [point], trial, facts, measure, rows.append, progress)
        row = rows[-1]
        if failed(row):
            raise UserError(f"--find_max_batch_size: batch size {size}: {row['error']}")
        if memory_ran_out(row):
            too_large = size
        else:
            fits = size
        tqdm.write(f"batch size {size}: {'does not fit' if size == too_large else 'fits'}")
        size = min(2 * fits, experiment.samples)
        if not fits < size < too_large:
            size = (fits + too_large) // 2
    if not fits:
        raise UserError("--find_max_batch_size: not even batch size 1 fits into memory")
    return fits


def memory_ran_out(row: dict) -> bool:
    return row["status"] == "out_of_memory" or (
        row["status"] == "killed" and "out of memory" in row["error"]
    )


def failed(row: dict) -> bool:
    return row["status"] != "ok" and not memory_ran_out(row)


def save(path: Path, row: dict, columns) -> Path | None:
    """Append the row; returns the file it is in.

    Where that one's disk is full or refuses, it is a file of the same name in the temporary folder,
    the home folder or the current one; where all refuse, the terminal keeps the row: None.
    """
    try:
        saved_in = append_row(path, row, list(columns))
    except OSError as error:
        problem = f"{path} cannot be written ({error.strerror or error})"
        saved_in = save_elsewhere(path.name, row, columns)
        where = f"the row is in {saved_in}" if saved_in else f"the row: {row}"
        tqdm.write(f"{problem}; {where}", file=sys.stderr)
        return saved_in
    if saved_in != path:
        tqdm.write(f"{path} can no longer be read back; the row is in {saved_in}", file=sys.stderr)
    return saved_in


def save_elsewhere(name: str, row: dict, columns) -> Path | None:
    for folder in (tempfile.gettempdir, Path.home, Path.cwd):
        try:
            return append_row(Path(folder()) / name, row, list(columns))
        except (OSError, RuntimeError):
            continue  # that disk is full as well, or there is no such folder
    return None
