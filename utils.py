"""What every script shares: command line and sweep. Imports no ML framework.

A sweep measures every batch size in a fresh process, so that memory of one never leaks into the
next and a crash costs one row. A row is saved the moment its batch size ends.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from tqdm import tqdm

from utils_machine import other_load
from utils_process import UsageError, UserError, run_in_fresh_process
from utils_report import announce, report, summarize
from utils_results import (
    COLUMNS,
    CONFIGURATION,
    UnreadableResults,
    append_row,
    read_rows,
    to_cell,
)

PROJECT_VERSION = "0.1.0"  # raised whenever a number's meaning changes


@dataclass(frozen=True)
class Experiment:
    """What is measured, and the defaults of its command line."""

    description: str
    backend: str
    task: str
    dataset: str
    model: str
    input_size: int
    epochs: int
    batch_sizes: str
    samples: int  # of the training set
    # Flags that shape the model, with their defaults; each is a column too, and part of a row's
    # configuration.
    model_flags: dict[str, int | float] = field(default_factory=dict)

    def results_path(self, results_dir: Path, machine: str) -> Path:
        """The one CSV file of this experiment on `machine`."""
        name = f"{machine}_{self.dataset}_{self.model}_{self.input_size}_{self.backend}_results.csv"
        return results_dir / f"results_{self.backend}_{self.task}" / name


# Command line


def parse_arguments(experiment: Experiment) -> argparse.Namespace:
    """The flags of a training experiment; bad usage ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        description=experiment.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--epochs", type=whole_number, default=experiment.epochs, help="default: %(default)s")
    add("--batch_sizes", type=batch_sizes, default=experiment.batch_sizes,
        help='comma-separated, walked in this order; default: "%(default)s"')  # fmt: skip
    add("--find_max_batch_size", action="store_true",
        help="find the largest batch size that fits into memory, and measure that one")  # fmt: skip
    add("--repeats", type=whole_number, default=1, help="measure every size so often, in rounds")
    add("--shuffle_batch_sizes", action="store_true", help="walk them in random order (--seed)")
    add("--max_seconds", type=seconds, help="end each batch size after this much steady training")
    add("--data", choices=["auto", "real", "synthetic"], default="auto",
        help="auto: synthetic when the real data cannot be reached")  # fmt: skip
    add("--data_dir", type=Path, default=Path("data"), help="default: %(default)s")
    add("--device", type=device_name, default="auto", help="auto, cpu, mps, cuda or cuda:N")
    add("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    add("--compile", action="store_true", help="compile the model")
    if (experiment.backend, experiment.task) == ("pytorch", "cv"):
        add("--channels_last", action="store_true", help="images in NHWC memory order")
    if (experiment.backend, experiment.task) == ("pytorch", "nlp"):
        add("--evaluate", action="store_true", help="test accuracy, after the clock has stopped")
    for name, default in experiment.model_flags.items():
        kind = whole_number if isinstance(default, int) else fraction
        add(f"--{name}", type=kind, default=default, help="default: %(default)s")
    add("--seed", type=int, default=42, help="default: %(default)s")
    add("--results_dir", type=Path, default=Path("results"), help="default: %(default)s")
    add("--machine_name", type=machine_name, help="file the results under this name")
    add("--cooldown", type=seconds, default=0.0, help="seconds of rest between batch sizes")
    add("--resume", action="store_true", help="skip batch sizes with a good row already")
    return parser.parse_args()


def whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def batch_sizes(text: str) -> list[int]:
    try:
        return [whole_number(part.strip()) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        form = 'whole numbers from 1 on, separated by commas, such as "32, 64"'
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {form}") from None


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def fraction(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return number


def device_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, mps, cuda or cuda:N")
    return text


def machine_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} has more than letters, digits, '_', '-', '.'")
    return text


# The sweep


def sweep(experiment: Experiment, prepare: Callable, measure: Callable) -> None:
    """Measure every batch size of the command line, each in a fresh process, and exit.

    Args:
        prepare: `prepare(options)`: fetches data, returns the columns that every row shares.
        measure: `measure(batch_size, options)`: trains, returns the columns it measured.
            `options` are the command line's, with `data` as `prepare` settled it.
    """
    options = parse_arguments(experiment)
    rows = []
    with one_line_errors(rows, options.results_dir), only_benchmark() as alone:
        raise_open_files_limit()
        require_writable(options.results_dir)
        facts = settle(experiment, options, prepare)
        path = experiment.results_path(options.results_dir, facts["machine"])
        _, saved = read_rows(path)
        facts["other_load_percent"], busiest = other_load()
        facts["other_benchmark_running"] = not alone
        announce(experiment, options, facts, busiest)
        if options.find_max_batch_size:
            options.batch_sizes = [find_max_batch_size(experiment, options, facts, measure)]
        for row in measured_rows(experiment, options, facts, measure, saved):
            rows.append(row)
            save(path, row)
            report(row)
        summarize(rows, path)
    sys.exit(any(failed(row) for row in rows))


@contextlib.contextmanager
def only_benchmark():
    """Whether this user runs no other benchmark of the collection meanwhile."""
    lock = FileLock(Path(tempfile.gettempdir()) / f"mac_ml_speed_test_{os.getuid()}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def one_line_errors(rows: list[dict], results_dir: Path):
    """Say what went wrong in one line, and exit with its code; after Ctrl-C also what is saved."""
    try:
        yield
    except (UserError, UnreadableResults) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        # A second, impatient one must not cut the farewell short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        saved = f"{len(rows)} rows of this run are saved under {results_dir}"
        print(f"\nInterrupted: {saved}.", file=sys.stderr)
        sys.exit(130)


def raise_open_files_limit() -> None:
    """Data loaders need more open files than macOS' 256; setting the limit to infinity fails."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = 65536 if hard == resource.RLIM_INFINITY else hard
    for limit in (65536, 10240, 8192, 4096):
        if min(limit, ceiling) <= soft or soft == resource.RLIM_INFINITY:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, ceiling), hard))
            return
        except (ValueError, OSError):
            continue


def require_writable(results_dir: Path) -> None:
    """Raises UsageError unless files can be written to `results_dir` and the disk has room."""
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        probe = results_dir / f".writable_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"--results_dir={results_dir}: cannot be written ({error.strerror})"
        ) from None
    if shutil.disk_usage(results_dir).free < 100e6:
        raise UserError(f"--results_dir={results_dir}: less than 0.1 GB is free on its disk")


def settle(experiment: Experiment, options: argparse.Namespace, prepare: Callable) -> dict:
    """What a fresh process finds out before the first batch size: machine, device, data."""
    outcome = run_in_fresh_process(prepare, options)
    if outcome["status"] == "user_error":
        raise (UsageError if outcome["exit_code"] == 2 else UserError)(outcome["error"])
    if outcome["status"] != "ok":
        print(outcome.get("details", ""), file=sys.stderr)
        raise UserError(f"preparation failed: {outcome['error']}")
    facts = outcome["value"]
    options.data = facts["data"]
    facts["machine"] = options.machine_name or facts["machine"]
    flags = {n: getattr(options, n) for n in configuration(experiment) if hasattr(options, n)}
    return {**flags, **facts, "project_version": PROJECT_VERSION}


def configuration(experiment: Experiment) -> list[str]:
    """Rows of this experiment that agree in these columns measure the same thing."""
    return [*CONFIGURATION, *experiment.model_flags]


def find_max_batch_size(experiment, options, facts: dict, measure: Callable) -> int:
    """The largest batch size that fits: doubled from the first one given, then bisected.

    Raises:
        UserError: not even that one fits, or a try fails for another reason than memory.
    """
    trial = argparse.Namespace(**{**vars(options), "epochs": 1, "max_seconds": 1.0})
    fits, too_large = 0, experiment.samples + 1
    size = min(options.batch_sizes[0], experiment.samples)
    while too_large - fits > max(1, fits // 50):  # to 2 %
        row = measure_batch_size(size, trial, facts, measure)
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


def measured_rows(experiment, options, facts: dict, measure: Callable, saved: list[dict]):
    """Yield a row per batch size; after one that ran out of memory, larger ones are skipped."""
    too_large = float("inf")
    shown = dict(desc="sweep", unit=" batch sizes", disable=None)
    measured_before = False
    for round_, batch_size in tqdm(sequence(options), **shown):
        if batch_size >= too_large:
            tqdm.write(f"batch size {batch_size}: skipped, {too_large} did not fit into memory")
            continue
        wanted = {n: to_cell((facts | {"batch_size": batch_size}).get(n))
                  for n in configuration(experiment)}  # fmt: skip
        good = good_rows(saved, wanted, whole=not options.max_seconds)
        if options.resume and good > round_:
            tqdm.write(f"batch size {batch_size}: skipped, it has a good row already (--resume)")
            continue
        if measured_before:
            time.sleep(options.cooldown)
        measured_before = True
        row = measure_batch_size(batch_size, options, facts, measure)
        if memory_ran_out(row):
            too_large = min(too_large, batch_size)
        yield row


def sequence(options: argparse.Namespace) -> list[tuple[int, int]]:
    """(round, batch size) in the order of measuring; every round has each batch size once."""
    order = random.Random(options.seed)
    walk = []
    for round_ in range(options.repeats):
        sizes = list(options.batch_sizes)
        if options.shuffle_batch_sizes:
            order.shuffle(sizes)
        walk += [(round_, size) for size in sizes]
    return walk


def good_rows(saved: list[dict], wanted: dict[str, str], whole: bool) -> int:
    """How many `ok` rows in `saved` have the `wanted` cells, measured whole if need be."""
    return sum(
        old.get("status") == "ok"
        and all(old.get(name, "") == cell for name, cell in wanted.items())
        and not (whole and old.get("extrapolated") == "True")
        for old in saved
    )


def measure_batch_size(batch_size: int, options, facts: dict, measure: Callable) -> dict:
    """The row of one batch size, whatever became of it."""
    row = {"batch_size": batch_size, **facts}
    row["started_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    swapped = psutil.swap_memory().sout
    outcome = run_in_fresh_process(measure, batch_size, options)
    row["swap_written_gb"] = (psutil.swap_memory().sout - swapped) / 1e9
    if outcome["status"] == "ok":
        row |= outcome["value"]
    else:
        row["error"] = outcome["error"]
        if outcome["status"] == "error":
            tqdm.write(outcome.get("details", outcome["error"]), file=sys.stderr)
    row["status"] = "error" if outcome["status"] == "user_error" else outcome["status"]
    return row


def memory_ran_out(row: dict) -> bool:
    return row["status"] == "out_of_memory" or (
        row["status"] == "killed" and "out of memory" in row["error"]
    )


def failed(row: dict) -> bool:
    return row["status"] != "ok" and not memory_ran_out(row)


def save(path: Path, row: dict, columns: list[str] = COLUMNS) -> None:
    """Append the row; where the disk refuses it, the terminal keeps it."""
    try:
        saved_in = append_row(path, row, columns)
    except OSError as error:
        tqdm.write(f"{path} cannot be written ({error.strerror}); the row: {row}", file=sys.stderr)
        return
    if saved_in != path:
        tqdm.write(f"{path} can no longer be read back; the row is in {saved_in}", file=sys.stderr)
