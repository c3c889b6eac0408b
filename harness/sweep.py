"""The sweep: each point of an experiment in a fresh process, saved the moment it ends.

A point is one value of each column that the experiment varies, such as {"batch_size": 32}.
"""

import argparse
import itertools
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
from harness.disturbance import Times, other_load_percent
from harness.experiment import Experiment
from harness.process import FreshProcess, UserError, value_of
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
    batch size wants all memory.
    """
    alone = getattr(options, "num_devices", 1) == getattr(options, "num_machines", 1) == 1
    return bool(experiment.epochs) and alone and not getattr(options, "find_max_batch_size", 0)


def points(experiment: Experiment, options: argparse.Namespace) -> list[tuple[int, dict]]:
    """(round, point) in the order of measuring; every round has each point once."""
    order = random.Random(options.seed)
    columns = [varied.column for varied in experiment.varied]
    lists = [getattr(options, varied.flag) for varied in experiment.varied]
    walk = []
    for round_ in range(options.repeats):
        turn = [dict(zip(columns, values, strict=True)) for values in itertools.product(*lists)]
        if options.shuffle:
            order.shuffle(turn)
        walk += [(round_, point) for point in turn]
    return walk


def measured_rows(
    experiment: Experiment, options, facts: dict, measure: Callable, saved: list[dict], process=None
) -> Iterator[dict]:
    """Yield a row per point; after one that ran out of memory, larger ones are skipped.

    Args:
        facts: the columns that every row shares.
        saved: rows of earlier runs, for --resume.
        process: a `FreshProcess` for the first point; every other one has its own.
    """
    size = experiment.varied[-1]
    too_large = {}
    measured_before = False
    walk = points(experiment, options)
    bar = tqdm(walk, desc="sweep", unit=f" {size.flag.replace('_', ' ')}", disable=None)
    for number, (round_, point) in enumerate(bar):
        *kind, value = point.values()
        limit = too_large.get(tuple(kind))
        if limit is not None and value >= limit:
            tqdm.write(f"{experiment.name(point)}: skipped, {limit} did not fit into memory")
            continue
        row = facts_of(point, facts)
        wanted = experiment.configuration(row)
        good = good_rows(experiment, saved, wanted, whole=not options.max_seconds)
        if options.resume and good > round_:
            why = "skipped, it has a good row already (--resume)"
            tqdm.write(f"{experiment.name(point)}: {why}")
            continue
        if measured_before:
            time.sleep(options.cooldown)
        first, measured_before = not measured_before, True
        progress = Progress(experiment.name(point), of=len(walk) - number if first else 0)
        row = measure_point(point, options, facts, measure, progress, process)
        process = None
        if memory_ran_out(row) and not size.choices:
            too_large[tuple(kind)] = min(value, too_large.get(tuple(kind), value))
        yield row


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


def measure_point(
    point: dict, options, facts: dict, measure: Callable, progress: Callable, process=None
) -> dict:
    """The row of one point, whatever became of it; measured in a fresh process, or that given."""
    row = facts_of(point, facts)
    row["started_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    swapped, before, pauses = swapped_out(), Times.now(), Pauses()
    patience = PATIENCE if hasattr(options, "epochs") else PATIENCE_WITH_FITS
    with process or FreshProcess() as process:
        outcome = process.call(
            measure, *point.values(), options, progress=progress, patience=patience
        )
    # Of the whole process; a clock knows these of the time that it measured.
    load = other_load_percent(Times.now().since(before))
    row["other_load_percent"] = row.get("other_load_percent") if load is None else load
    row["disturbance"] = SUSPENDED if pauses.since_last() else None
    row["swap_written_gb"] = written_gb(swapped, swapped_out())
    if outcome["status"] == "ok":
        row |= outcome["value"]
    else:
        row["error"] = outcome["error"]
        if outcome["status"] == "error":
            tqdm.write(outcome.get("details", outcome["error"]), file=sys.stderr)
    row["status"] = "error" if outcome["status"] == "user_error" else outcome["status"]
    return row


def find_max_batch_size(experiment: Experiment, options, facts: dict, measure: Callable) -> int:
    """The largest batch size that fits: doubled from the first one given, then bisected.

    Raises:
        UserError: not even that one fits, or a try fails for another reason than memory.
    """
    trial = argparse.Namespace(**{**vars(options), **TRIAL})
    fits, too_large = 0, experiment.samples + 1
    size = min(options.batch_sizes[0], experiment.samples)
    while too_large - fits > max(1, fits // 50):  # to 2 %
        progress = Progress(f"batch size {size}")
        row = measure_point({"batch_size": size}, trial, facts, measure, progress)
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
