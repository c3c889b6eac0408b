"""Results files: read back strictly, appended to under a lock, replaced in one move.

Cells are kept as the text they are, so that appending a row never changes an older one.
"""

import contextlib
import csv
import os
import time
from pathlib import Path

from filelock import FileLock

LOCK_SECONDS = 60.0  # a row is written in a moment; who holds it for longer hangs

# What every row ends with, the LLM's too.
MACHINE_COLUMNS = [
    "device",
    "num_devices",
    "threads",
    "gpu_power_limit_watts",
    "thermal_state",
    "machine",
    "chip",
    "cpu_cores",
    "gpu_cores",
    "memory_gb",
    "power",
    "other_load_percent",
    "other_benchmark_running",
    "disturbance",
    "os",
    "python",
    "framework",
    "project_version",
    "started_at",
]

COLUMNS = [
    "batch_size",
    "avg_time_per_epoch",
    "avg_time_per_epoch_ci95",
    "extrapolated",
    "samples_per_second",
    "samples_per_second_ci95",
    "first_step_seconds",
    "compute_samples_per_second",
    "input_bound_percent",
    "sustained_ratio",
    "tflops_per_second",
    "peak_memory_gb",
    "swap_written_gb",
    "energy_joules_per_sample",
    "average_power_watts",
    "train_loss",
    "status",
    "error",
    "epochs",
    "steps_timed",
    "steps_per_epoch",
    "data",
    "precision",
    "compile",
    "channels_last",
    *MACHINE_COLUMNS,
]

# Rows that agree in these columns measure the same thing.
CONFIGURATION = [
    "batch_size",
    "epochs",
    "data",
    "precision",
    "compile",
    "channels_last",
    "device",
    "framework",
    "project_version",
]


class UnreadableResults(Exception):
    """A results file whose rows cannot be told apart; it is left alone."""


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a results file; empty where there is none.

    Raises:
        UnreadableResults: a line has more or fewer cells than the header or no end, or the file
            is not text, or may not be read.
    """
    if not path.exists():
        return [], []
    try:
        text = path.read_text(encoding="utf-8")
        header, *lines = csv.reader(text.splitlines(keepends=True), strict=True)
    except OSError as error:
        raise UnreadableResults(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, csv.Error) as error:
        raise UnreadableResults(f"{path} is not a results file: {error or 'no header'}") from None
    if not text.endswith("\n"):
        raise UnreadableResults(f"{path}: its last line is torn (no line end)")
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise UnreadableResults(
                f"{path}: row {number} has {len(cells)} cells where the header has {len(header)}"
            )
    return header, [dict(zip(header, cells, strict=True)) for cells in lines]


def append_row(path: Path, row: dict, columns: list[str]) -> Path:
    """Add a row to the results file at `path`; returns the file it is in.

    An older file with fewer columns gains the missing ones; its own columns are kept. A file that
    cannot be read back is left alone, and the row goes into a new file beside it.

    Raises:
        OSError: the disk is full or refuses, or another process holds the lock; the file is as it
            was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
        try:
            header, rows = read_rows(path)
        except UnreadableResults:
            path = path.with_stem(f"{path.stem}_{time.time_ns()}")
            header, rows = [], []
        header = [*columns, *(name for name in header + list(row) if name not in columns)]
        header = list(dict.fromkeys(header))
        rows.append({name: cell_of(name, value) for name, value in row.items()})
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                write_rows(file, header, rows)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    return path


def write_rows(file, header: list[str], rows: list[dict[str, str]]) -> None:
    """Header and rows as CSV into an open file; a cell that a row lacks is empty."""
    writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def cell_of(name: str, value) -> str:
    """Text of a value in a column. A loss that is not a number was measured, and is no unknown."""
    if name == "train_loss" and value is not None and value != value:
        return "nan"
    return to_cell(value)


def to_cell(value) -> str:
    """Text of a value: six significant digits for a float, nothing for an unknown number."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
    return " ".join(str(value).split())
