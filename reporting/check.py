"""Are the results files whole: columns, types, units in range, machine as in the file's name?"""

import contextlib
import json
import math
import re
from datetime import datetime
from pathlib import Path

from harness.columns import COLUMN, TEXTS, Column, later_columns
from harness.experiment import Experiment
from harness.private import named_homes
from harness.results import UnreadableResults, read_rows
from harness.terminal import is_nonsense
from reporting.experiments import find_experiments, of_file, results_files, why_unknown
from reporting.tables import (
    GEEKBENCH_FILE,
    GEEKBENCH_NUMBERS,
    PRICES_FILE,
    column_types,
    read_file,
    read_geekbench,
    read_prices,
    typed,
)


def check_folder(results_dir: Path) -> tuple[int, list[str]]:
    """How many files there are, and a line for each problem in them."""
    files = sorted([*results_files(results_dir), *results_dir.rglob("selfcheck/*.json")])
    experiments, problems = find_experiments(), []
    for path in files:
        if path.suffix == ".json":
            found = check_selfcheck(path)
        elif path == results_dir / GEEKBENCH_FILE:
            found = check_geekbench(path)
        elif path == results_dir / PRICES_FILE:
            found = check_prices(path)
        else:
            found = check_results_file(path, experiments)
        problems += [problem if str(path) in problem else f"{path}: {problem}" for problem in found]
    return len(files), problems


def check_results_file(path: Path, experiments: list[Experiment]) -> list[str]:
    """The problems of one CSV file of an experiment."""
    found = of_file(path, experiments)
    if not found:
        return [why_unknown(path) or "neither folder and name of an experiment's results"]
    experiment, machine = found
    try:
        header, rows = read_rows(path)
    except UnreadableResults as error:
        return [str(error)]
    if not any(row.get("project_version") for row in rows):
        numbers = set(header) - TEXTS - set(experiment.text_columns)
        return check_older(path, rows, experiments) + check_finite(rows, numbers)
    problems = check_header(experiment, header)
    if missing := [name for name in required_columns(experiment) if name not in header]:
        return [*problems, *(f"column {name!r} is missing" for name in missing)]
    types = column_types(experiment)
    seen = {}
    for line, row in enumerate(rows, start=2):
        found_here = check_name(path, row, experiment, machine)
        found_here += check_cells(row, *types)
        found_here += check_numbers(row, experiment) + check_loss(row, experiment)
        problems += [f"row {line}: {problem}" for problem in found_here]
        first = seen.setdefault(tuple(row.values()), line)
        if first != line:
            problems.append(f"row {line}: the same as row {first}")
    return problems + check_finite(rows, types[0])


def check_header(experiment: Experiment, header: list[str]) -> list[str]:
    known = experiment.known_columns
    # An experiment whose script is gone may have had columns of its own.
    unknown = [name for name in header if name not in known and experiment.description]
    problems = [f"unknown column {name!r}" for name in unknown]
    return problems + [f"repeated column {n!r}" for n in set(header) if header.count(n) > 1]


def required_columns(experiment: Experiment) -> list[str]:
    """The columns that every version of the project wrote."""
    later = later_columns("TLM" if experiment.generations else "TM")
    return [name for name in experiment.header if name not in later]


def check_name(path: Path, row: dict[str, str], experiment: Experiment, machine: str) -> list[str]:
    """The file's name must be that of the machine in the row; an LLM's has the model's too."""
    expected = row["machine"]
    if experiment.generations:
        machine = re.sub(r"_results(_\d+)?$", "", path.stem)
        expected = f"{row['machine']}_{row['model']}"
    return [] if machine == expected else [f"of {expected!r}, the file's name says {machine!r}"]


def check_cells(row: dict[str, str], numbers: set[str], flags: set[str]) -> list[str]:
    """The cells of one row of ours that are of a wrong type or out of range."""
    problems = []
    for name, text in row.items():
        try:
            value = typed(name, text, numbers, flags)
        except ValueError as error:
            problems.append(str(error))
            continue
        column = COLUMN.get(name, Column(name, "", "", ""))
        if column.choices and text not in column.choices:
            problems.append(f"{name} is {text!r}")
        if name in numbers and not math.isnan(value):
            if not column.low <= value <= column.high:
                problems.append(f"{name} is {text}, not in {column.low:g} to {column.high:g}")
            elif column.unit == "count" and value % 1:
                problems.append(f"{name} is {text}, not a whole number")
    if not re.fullmatch(r"\d+\.\d+\.\d+", row["project_version"]):
        problems.append(f"project_version is {row['project_version']!r}")
    if homes := named_homes(row["error"]):
        problems.append(f"error names the home folder of {homes[0]!r}: write USER there instead")
    if row["status"] != "ok" and not row["error"]:
        problems.append(f"status is {row['status']!r}, but error is empty")
    return problems + check_time(row["started_at"])


def check_finite(rows: list[dict[str, str]], numbers: set[str]) -> list[str]:
    """Cells such as `inf` and `nan`; a loss may be that, because a device can bring it there."""
    problems = []
    for line, row in enumerate(rows, start=2):
        for name in [name for name in row if name in numbers - {"train_loss"}]:
            with contextlib.suppress(ValueError):  # of no number at all something else is said
                if not math.isfinite(float(row[name] or 0)):
                    what = f"{name} is {row[name]}, which is no number: leave the cell empty"
                    problems.append(f"row {line}: {what}")
    return problems


def check_numbers(row: dict[str, str], experiment: Experiment) -> list[str]:
    """A good row has the number that it was measured for, a failed one has not."""
    if empty := [v.column for v in experiment.varied if not row[v.column]]:
        return [f"{name} is empty" for name in empty]
    good, columns = row["status"] == "ok", [speed.column for speed in experiment.speeds]
    if experiment.generations:
        missing = good and not any(row[name] for name in columns)
        return ["status is 'ok', but there are no tokens per second"] if missing else []
    if good != bool(row[columns[0]]):
        return [f"status is {row['status']!r}, {columns[0]} {row[columns[0]]!r}"]
    return []


def check_loss(row: dict[str, str], experiment: Experiment) -> list[str]:
    """The speed of a training that went wrong means nothing, however good the row."""
    try:
        loss = float(row.get("train_loss") or 0)
    except ValueError:
        return []  # said already
    if row["status"] == "ok" and is_nonsense(loss, experiment.classes):
        return [f"train_loss is {loss:.4g}: the device computed nonsense"]
    return []


def check_time(text: str) -> list[str]:
    try:
        started = datetime.fromisoformat(text)
    except ValueError:
        return [f"started_at is {text!r}, not an ISO 8601 time"]
    return [] if started.tzinfo else [f"started_at is {text!r}, without a time zone"]


def check_older(path: Path, rows: list[dict], experiments: list[Experiment]) -> list[str]:
    """The problems of a file of the older format: what the notebook would skip."""
    problems = []
    _, read = read_file(path, experiments, problems)
    if not read and not problems and rows:
        problems.append("no row can be read")
    return problems


def check_geekbench(path: Path) -> list[str]:
    problems = []
    table = read_geekbench(path, problems)
    if not table.empty:
        problems += check_finite(read_rows(path)[1], GEEKBENCH_NUMBERS)
    names = table["machine"]
    problems += [f"{name} is there twice" for name in names[names.duplicated()]]
    for column in [name for name in table.columns if name.endswith("_score")]:
        low = table[table[column] <= 0]
        problems += [f"{column} of {name} is not above 0" for name in low["machine"]]
    return problems


def check_prices(path: Path) -> list[str]:
    problems = []
    read_prices(path, problems)
    return problems


def check_selfcheck(path: Path) -> list[str]:
    """The problems of a report that selfcheck.py wrote."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        machine, _ = report["machine"], report["peak_tflops_measured"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return ["not a report of selfcheck.py"]
    return [] if machine == path.stem else [f"machine is {machine!r}, not as in the file's name"]
