# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["filelock", "pandas", "psutil", "scipy", "tqdm"]
# ///
"""Are the results files whole: columns, types, units in range, machine as in the file's name?

Files of the older, published format and Geekbench ML's table are checked as such. One line per
problem, exit code 1 if there is any.

    python check_results.py results
"""

import argparse
import json
import math
import re
import sys
from datetime import datetime
from pathlib import Path

import utils
from utils_experiments import EXTRA_COLUMNS, LLM_COLUMNS, of_file, of_llm_file
from utils_results import COLUMNS, UnreadableResults, read_rows

STATUSES = {"ok", "out_of_memory", "killed", "error"}
CHOICES = {
    "status": STATUSES,
    "data": {"real", "synthetic"},
    "precision": {"fp32", "bf16", "fp16", ""},
}
# Smallest and largest believable number of a column; from 0 on where none is given.
RANGES = {
    "batch_size": (1, 1e7),
    "avg_time_per_epoch": (1e-6, 1e8),
    "samples_per_second": (1e-6, 1e9),
    "tokens_per_second": (1e-6, 1e7),
    "prompt_tokens_per_second": (1e-6, 1e8),
    "input_bound_percent": (-1000, 100),
    "sustained_ratio": (0, 100),
    "test_accuracy": (0, 1),
    "memory_gb": (0.1, 1e5),
    "peak_memory_gb": (0, 1e5),
    "tflops_per_second": (0, 1e6),
    "swap_written_gb": (-1e5, 1e5),
    "train_loss": (-math.inf, math.inf),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results_dir", nargs="?", type=Path, default=Path("results"), help="default: %(default)s"
    )
    return parser.parse_args()


def check_folder(results_dir: Path) -> tuple[int, list[str]]:
    """How many files there are, and a line for each problem in them."""
    from utils_tables import GEEKBENCH_FILE

    files = sorted([*results_dir.rglob("*.csv"), *results_dir.rglob("selfcheck/*.json")])
    problems = []
    for path in files:
        if path.suffix == ".json":
            found = check_selfcheck(path)
        elif path == results_dir / GEEKBENCH_FILE:
            found = check_geekbench(path)
        else:
            found = check_results_file(path)
        problems += [f"{path}: {problem}" for problem in found]
    return len(files), problems


def check_results_file(path: Path) -> list[str]:
    """The problems of one CSV file of an experiment, in the order of its rows."""
    llm = path.parent.name.startswith("results_llama")
    found = of_llm_file(path) if llm else of_file(path)
    if not found:
        return ["neither folder and name of an experiment's results"]
    try:
        header, rows = read_rows(path)
    except UnreadableResults as error:
        return [str(error).removeprefix(f"{path}").lstrip(": ")]
    if not any(row.get("project_version") for row in rows):
        return check_older(path, rows)
    experiment, machine = found
    known = LLM_COLUMNS if llm else [*COLUMNS, *EXTRA_COLUMNS, *experiment.model_flags]
    problems = [f"unknown column {name!r}" for name in header if name not in known]
    problems += [f"repeated column {name!r}" for name in set(header) if header.count(name) > 1]
    missing = [name for name in known if name not in header]
    if not llm:
        missing = [name for name in missing if name in COLUMNS]
    problems += [f"column {name!r} is missing" for name in missing]
    if missing:
        return problems
    seen = {}
    for line, row in enumerate(rows, start=2):
        problems += [f"row {line}: {problem}" for problem in check_row(row, machine, llm)]
        first = seen.setdefault(tuple(row.values()), line)
        if first != line:
            problems.append(f"row {line}: the same as row {first}")
    return problems


def check_row(row: dict[str, str], machine: str, llm: bool) -> list[str]:
    """The problems of one row of ours."""
    from utils_tables import LLM_NUMBERS, NUMBERS, typed

    numbers = LLM_NUMBERS if llm else NUMBERS
    problems = []
    for name, text in row.items():
        try:
            value = typed(name, text, numbers)
        except ValueError as error:
            problems.append(str(error))
            continue
        if name in CHOICES and text not in CHOICES[name]:
            problems.append(f"{name} is {text!r}")
        if name in numbers and not math.isnan(value):
            low, high = RANGES.get(name, (0, math.inf))
            if not low <= value <= high or math.isinf(value):
                problems.append(f"{name} is {text}, not in {low:g} to {high:g}")
    if row["machine"] != machine:
        problems.append(f"machine is {row['machine']!r}, in the file's name {machine!r}")
    if not re.fullmatch(r"\d+\.\d+\.\d+", row["project_version"]):
        problems.append(f"project_version is {row['project_version']!r}")
    problems += check_time(row["started_at"])
    rates = ("tokens_per_second", "prompt_tokens_per_second")
    needed = rates if llm else ("avg_time_per_epoch", "samples_per_second")
    filled = any(row[name] for name in needed) if llm else row["avg_time_per_epoch"]
    if row["status"] == "ok" and not filled:
        problems.append(f"status is ok, but {' and '.join(needed)} are empty")
    if row["status"] != "ok" and not row["error"]:
        problems.append(f"status is {row['status']}, but error is empty")
    return problems


def check_time(text: str) -> list[str]:
    try:
        started = datetime.fromisoformat(text)
    except ValueError:
        return [f"started_at is {text!r}, not an ISO 8601 time"]
    return [] if started.tzinfo else [f"started_at is {text!r}, without a time zone"]


def check_older(path: Path, rows: list[dict]) -> list[str]:
    """The problems of a file without our columns: what the notebook would skip."""
    from utils_tables import read_generations, read_training

    problems = []
    read = read_generations if path.parent.name.startswith("results_llama") else read_training
    if not read(path, problems) and not problems and rows:
        problems.append("no row can be read")
    return [problem.removeprefix(f"{path}: ") for problem in problems]


def check_geekbench(path: Path) -> list[str]:
    from utils_tables import read_geekbench

    problems = []
    table = read_geekbench(path, problems)
    names = table["machine"]
    problems += [f"{name} is there twice" for name in names[names.duplicated()]]
    for column in [name for name in table.columns if name.endswith("_score")]:
        low = table[table[column] <= 0]
        problems += [f"{column} of {name} is not above 0" for name in low["machine"]]
    return [problem.removeprefix(f"{path}: ") for problem in problems]


def check_selfcheck(path: Path) -> list[str]:
    """The problems of a report that selfcheck.py wrote."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        machine, _ = report["machine"], report["peak_tflops_measured"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return ["not a report of selfcheck.py"]
    return [] if machine == path.stem else [f"machine is {machine!r}, not as in the file's name"]


def main() -> None:
    options = parse_arguments()
    with utils.one_line_errors([], options.results_dir):
        if not options.results_dir.is_dir():
            raise utils.UsageError(f"{options.results_dir} is not a folder")
        files, problems = check_folder(options.results_dir)
    print("\n".join([*problems, f"{files} files, {len(problems)} problems"]))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
