"""Results files: read back strictly, appended to under a lock, replaced in one move.

Cells are kept as the text they are, so that appending a row never changes an older one. What a
spreadsheet does to a file is undone in reading, and so in the rows that an append writes back.
"""

import contextlib
import csv
import io
import math
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path

from filelock import FileLock

from harness.columns import FLAGS
from harness.private import without_names

# A language model's answer may be longer than the 131,072 characters that csv allows.
csv.field_size_limit(sys.maxsize)

LOCK_SECONDS = 60.0  # a row is written in a moment; who holds it for longer hangs

CONFLICT = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)


class UnreadableResults(Exception):
    """A results file whose rows cannot be told apart; it is left alone."""


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a results file; empty where there is none.

    A file that came through a spreadsheet or an editor is read too: byte-order mark, semicolons or
    tabs with decimal commas, other line ends or none at the last, empty lines and columns, TRUE;
    so are files joined to one, with a second header in the middle.

    Raises:
        UnreadableResults: a line has more or fewer cells than the header or is torn, or the file
            cannot be read or is not text.
    """
    try:
        text = path.read_bytes().decode().replace("\ufeff", "")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UnreadableResults(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        form = "save it as CSV in UTF-8"
        raise UnreadableResults(f"{path} is not a results file: not UTF-8 text; {form}") from None
    if CONFLICT.search(text.replace("\r", "")):
        fix = "keep the rows of both sides, delete the lines <<<<<<<, ======= and >>>>>>>"
        raise UnreadableResults(f"{path}: an unfinished merge; {fix}")
    header, *lines = cells_of(path, text)
    names, rows = header, []
    for number, cells in lines:
        if looks_like_header(cells, header):
            names = cells
            continue
        if len(cells) != len(names):
            raise UnreadableResults(
                f"{path}: row {number} has {len(cells)} cells where the header has {len(names)}"
            )
        rows.append(dict(zip(names, cells, strict=True)))
    if is_torn(text, names, rows):
        raise UnreadableResults(f"{path}: its last line is torn (no line end)")
    header = list(dict.fromkeys([*header, *(name for row in rows for name in row)]))
    return header, [{name: row.get(name, "") for name in header} for row in rows]


def cells_of(path: Path, text: str) -> list:
    """The header, then (number of the line, cells) of each line that is not empty.

    Raises:
        UnreadableResults: this is not CSV, or a name is there twice.
    """
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(reader.line_num, cells) for cells in reader if any(cells)]
    except csv.Error as error:
        raise UnreadableResults(f"{path} is not a results file: {error}") from None
    if not lines:
        raise UnreadableResults(f"{path} is not a results file: no header")
    header = lines[0][1]
    while not header[-1]:
        header.pop()
    if twice := [name for name in header if header.count(name) > 1]:
        raise UnreadableResults(f"{path}: column {twice[0]!r} is there twice; delete one of them")
    for _, cells in lines[1:]:
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        own = zip(header, cells, strict=False)
        cells[: len(header)] = [as_written(name, cell, delimiter) for name, cell in own]
    return [header, *lines[1:]]


def as_written(name: str, cell: str, delimiter: str) -> str:
    """The cell as this project writes it, where a spreadsheet wrote it in its own way."""
    if name in FLAGS and cell.lower() in ("true", "false", "1", "0"):
        return str(cell.lower() in ("true", "1"))
    if cell in ("TRUE", "FALSE") and name != "answer":
        return cell.capitalize()
    if delimiter == ";" and re.fullmatch(r"-?\d+,\d+([eE][+-]?\d+)?", cell):
        return cell.replace(",", ".")
    return cell


def looks_like_header(cells: list[str], header: list[str]) -> bool:
    """Whether this is the header of another file that was joined to the first one."""
    return cells[0] == header[0] and len(set(cells) & set(header)) > len(header) / 2


def is_torn(text: str, names: list[str], rows: list[dict[str, str]]) -> bool:
    """Whether a last line without an end was cut off.

    Google Sheets ends no last line, nor do some editors. What they saved ends with a whole cell,
    and its time is a whole one; a spreadsheet is known by its carriage returns.
    """
    if text.endswith("\n") or not rows:
        return not text.endswith("\n")
    if "\r\n" in text:
        return False
    last = rows[-1]
    return not last[names[-1]] or "started_at" in last and not is_time(last["started_at"])


def is_time(text: str) -> bool:
    """Whether this is an ISO 8601 time with its time zone."""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


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


def number_of(cell) -> float:
    """The number in a cell's text, or that a cell is made of; NaN where there is none."""
    try:
        value = float("nan" if cell is None else cell)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def write_rows(file, header: list[str], rows: list[dict[str, str]]) -> None:
    """Header and rows as CSV into an open file; a cell that a row lacks is empty."""
    writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def cell_of(name: str, value) -> str:
    """Text of a value in a column. A loss that is not a number was measured, and is no unknown."""
    if name == "error":
        return without_names(to_cell(value))
    if name == "train_loss" and value is not None and not_finite(value):
        return f"{value:g}"
    return to_cell(value)


def not_finite(value) -> bool:
    return value != value or value in (math.inf, -math.inf)


def to_cell(value) -> str:
    """Text of a value: six significant digits for a float, nothing for what is no number."""
    if value is None or not_finite(value):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
    return " ".join(str(value).split())
