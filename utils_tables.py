"""Results read back into tables: our rows and the older, published ones, typed and labelled.

Rows of the older format (published in 2023 by the original collection) were measured under
another protocol: `protocol` is "2023" for them, and their label ends in "(2023)".
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from utils_experiments import (
    EXTRA_COLUMNS,
    LLM_FLAGS,
    LLM_MODEL,
    TRAINING,
    of_file,
    of_older_llm_file,
)
from utils_llama_report import COLUMNS as LLM_COLUMNS
from utils_results import COLUMNS, UnreadableResults, read_rows

OLDER = "2023"
OURS = "ours"
FLAGS = {"extrapolated", "compile", "channels_last", "other_benchmark_running", "flash_attn"}
TEXTS = {
    *("status", "error", "data", "precision", "device", "machine", "chip", "power", "os"),
    *("python", "framework", "project_version", "started_at", "weights", "transformers"),
}
MODEL_FLAGS = {name for experiment in TRAINING for name in experiment.model_flags}
NUMBERS = (set(COLUMNS) | set(EXTRA_COLUMNS) | MODEL_FLAGS) - FLAGS - TEXTS
LLM_TEXTS = TEXTS | {"question", "answer", "model", "architecture", "quantization"}
LLM_NUMBERS = set(LLM_COLUMNS) - FLAGS - LLM_TEXTS
GEEKBENCH_FILE = "results_geekbench_ml/geekbench_ml_0.6.csv"
GEEKBENCH_NUMBERS = {"cpu_cores", "cpu_score", "gpu_cores", "gpu_score", "neural_engine_score"}
# What charts and comparisons need even where no file has it.
ADDED = ["experiment", "protocol", "configuration", "label"]
NEEDED = [*COLUMNS, *EXTRA_COLUMNS, *sorted(MODEL_FLAGS), *ADDED]
LLM_NEEDED = [*LLM_COLUMNS, *ADDED[1:]]


class Results(NamedTuple):
    """All that was found under a results directory."""

    training: pd.DataFrame  # one row per measured batch size; columns: NEEDED and `source`
    generations: pd.DataFrame  # one row per LLM generation; columns: LLM_NEEDED and more
    geekbench: pd.DataFrame
    peaks: dict[str, dict[str, float]]  # machine -> precision -> measured peak in TFLOP/s
    problems: list[str]  # what could not be read, one line each


def load_results(results_dir: Path) -> Results:
    """Read every results file; one that cannot be read is named in `problems` and skipped."""
    results_dir = Path(results_dir)
    training, generations, problems = [], [], []
    for path in sorted(results_dir.rglob("results_*/*.csv")):
        try:
            if path.parent.name.startswith("results_llama"):
                generations += read_generations(path, problems)
            elif path.parent.name != "results_geekbench_ml":
                training += read_training(path, problems)
        except UnreadableResults as error:
            problems.append(str(error))
    geekbench = read_geekbench(results_dir / GEEKBENCH_FILE, problems)
    peaks = read_peaks(results_dir / "selfcheck", problems)
    return Results(
        table(training, NEEDED),
        table(generations, LLM_NEEDED),
        geekbench,
        peaks,
        # Problems are shown in the report, which must not carry this machine's paths.
        [problem.replace(f"{results_dir}/", "") for problem in problems],
    )


def table(rows: list[dict], needed: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=list(dict.fromkeys([*frame.columns, *needed])))


def read_training(path: Path, problems: list[str]) -> list[dict]:
    """Typed rows of one training experiment's file, ours or older."""
    found = of_file(path)
    if not found:
        problems.append(f"{path}: its name is none of a training experiment's")
        return []
    experiment, machine = found
    header, cells = read_rows(path)
    if not {"batch_size", "avg_time_per_epoch"} <= set(header) and "train_runtime" not in header:
        problems.append(f"{path}: its columns are none of a training experiment's")
        return []
    rows = []
    for line, row in enumerate(cells, start=2):
        try:
            rows.append(training_row(row, experiment, machine) | {"source": str(path)})
        except ValueError as error:
            problems.append(f"{path}: row {line}: {error}")
    return rows


def training_row(cells: dict[str, str], experiment, machine: str) -> dict:
    """The cells of one row with their types, its protocol, configuration and label.

    Raises:
        ValueError: a cell is not of its column's type.
    """
    older = not cells.get("project_version")
    if older:
        cells = older_training_cells(cells)
    row = {name: typed(name, text, NUMBERS) for name, text in cells.items()}
    if math.isnan(row["batch_size"]):
        raise ValueError("no batch size")
    row["batch_size"] = int(row["batch_size"])
    row["machine"] = row.get("machine") or machine
    row["experiment"] = experiment.chart
    row["configuration"] = configuration(row, experiment)
    return labelled(row, older)


def older_training_cells(cells: dict[str, str]) -> dict[str, str]:
    """A row of the older format in our columns; the word FAILED becomes a status."""
    failed = "FAILED" in cells.values()
    ours = {name: "" if text == "FAILED" else text for name, text in cells.items()}
    if "train_runtime" in ours:
        runtime, epochs = ours["train_runtime"], ours["epoch"]
        ours = {
            "batch_size": ours["batch_size"],
            "avg_time_per_epoch": str(float(runtime) / float(epochs)) if runtime else "",
            "samples_per_second": ours["train_samples_per_second"],
            "train_loss": ours["train_loss"],
            "epochs": epochs,
        }
    return ours | {
        "status": "failed" if failed else "ok",
        "data": "real",
        "precision": "fp32",
        "extrapolated": "False",
    }


def typed(name: str, text: str, numbers: set[str]):
    """The value of a cell; an empty one is None, or NaN in a column of numbers.

    Raises:
        ValueError: it is not of its column's type.
    """
    if name in numbers:
        try:
            return float(text or "nan")
        except ValueError:
            raise ValueError(f"{name} is {text!r}, not a number") from None
    if name in FLAGS:
        if text not in ("True", "False", ""):
            raise ValueError(f"{name} is {text!r}, not True or False")
        return text == "True"
    return text or None


def configuration(row: dict, experiment) -> str:
    """How a row differs from the defaults, such as `bf16 compiled`; empty where it does not."""
    parts = [row["precision"]] if row.get("precision") not in (None, "fp32") else []
    parts += ["compiled"] if row.get("compile") else []
    parts += ["channels_last"] if row.get("channels_last") else []
    for name, default in experiment.model_flags.items():
        value = row.get(name, default)
        if value != default and not math.isnan(value):
            parts.append(f"{name}={value:g}")
    return " ".join(parts)


def labelled(row: dict, older: bool) -> dict:
    row["protocol"] = OLDER if older else OURS
    row["label"] = ", ".join(filter(None, [pretty(row["machine"]), row["configuration"]]))
    if older:
        row["label"] += f" ({OLDER})"
    return row


def pretty(machine: str) -> str:
    return machine.replace("_", " ")


def read_generations(path: Path, problems: list[str]) -> list[dict]:
    """Typed rows of one file of LLM generations, ours or older."""
    header, cells = read_rows(path)
    if not {"question", "tokens_per_second"} <= set(header):
        problems.append(f"{path}: its columns are none of the LLM experiment's")
        return []
    rows = []
    for line, row in enumerate(cells, start=2):
        try:
            rows.append(generation_row(row, path) | {"source": str(path)})
        except ValueError as error:
            problems.append(f"{path}: row {line}: {error}")
    return rows


def generation_row(cells: dict[str, str], path: Path) -> dict:
    """The cells of one generation with their types, its protocol, configuration and label.

    In the older format tokens were estimated as characters / 4, and the time holds the prompt's.

    Raises:
        ValueError: a cell is not of its column's type, or nothing names the model.
    """
    row = {name: typed(name, cell, LLM_NUMBERS) for name, cell in cells.items()}
    older = not row.get("project_version")
    if older:
        row["model"], row["machine"] = of_older_llm_file(path)
        row |= {"status": "ok", "data": "real"}
    row["configuration"] = llm_configuration(row)
    return labelled(row, older)


def llm_configuration(row: dict) -> str:
    """How a generation differs from the defaults: another model, or other flags."""
    parts = [] if row["model"].removesuffix(".gguf") == LLM_MODEL else [row["model"]]
    parts += ["flash_attn"] if row.get("flash_attn") else []
    for name, default in LLM_FLAGS.items():
        value = row.get(name, default)
        if value != default and not math.isnan(value):
            parts.append(f"{name}={value:g}")
    return " ".join(parts)


def read_geekbench(path: Path, problems: list[str]) -> pd.DataFrame:
    """Scores of Geekbench ML, one row per machine."""
    try:
        _, cells = read_rows(path)
        rows = [
            {name: typed(name, text, GEEKBENCH_NUMBERS) for name, text in row.items()}
            for row in cells
        ]
    except (UnreadableResults, ValueError) as error:
        problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        rows = []
    return table(rows, ["machine", *sorted(GEEKBENCH_NUMBERS)])


def read_peaks(folder: Path, problems: list[str]) -> dict[str, dict[str, float]]:
    """What selfcheck measured as each machine's best matrix product, in TFLOP/s per precision."""
    peaks = {}
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            measured = report["peak_tflops_measured"]
            peaks[report["machine"]] = {name: peak for name, peak in measured.items() if peak}
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{path}: not a report of selfcheck.py")
    return peaks
