"""Results read back into tables: our rows and the older, published ones, typed and labelled.

Rows of the older format (published in 2023 by the original collection) were measured under
another protocol: `protocol` is "2023" for them, and their label ends in "(2023)".
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from harness.bandwidth import bandwidth_in
from harness.columns import COLUMN, COLUMNS, FLAGS, TEXTS
from harness.disturbance import disturbed
from harness.experiment import Experiment
from harness.results import UnreadableResults, is_time, read_rows
from harness.terminal import is_nonsense
from reporting.experiments import (
    find_experiments,
    of_file,
    of_older_llm_file,
    results_files,
    why_unknown,
)

OLDER = "2023"
OURS = "ours"
GEEKBENCH_FILE = "results_geekbench_ml/geekbench_ml_0.6.csv"
PRICES_FILE = "prices.csv"
GEEKBENCH_NUMBERS = {"cpu_cores", "cpu_score", "gpu_cores", "gpu_score", "neural_engine_score"}
# What charts and comparisons need even where no file has it.
ADDED = ["experiment", "protocol", "configuration", "label", "settings", "disturbed", "current"]
LLM_NEEDED = ["question", "question_iter", "tokens_per_second", "prompt_tokens_per_second", "model"]


class Results(NamedTuple):
    """All that was found under a results directory."""

    experiments: dict[str, Experiment]  # by chart; those whose script is gone too
    measurements: pd.DataFrame  # one row per measured point, such as a batch size, and `source`
    generations: pd.DataFrame  # one row per answer of a language model, and `source`
    geekbench: pd.DataFrame
    peaks: dict[str, dict[str, float]]  # machine -> precision -> measured peak in TFLOP/s
    prices: dict[str, dict]  # machine -> price, currency, date, source
    problems: list[str]  # what could not be read, one line each


def load_results(results_dir: Path) -> Results:
    """Read every results file; one that cannot be read is named in `problems` and skipped."""
    results_dir = Path(results_dir)
    found = find_experiments()
    experiments = {experiment.chart: experiment for experiment in found}
    measurements, generations, problems = [], [], []
    for path in results_files(results_dir):
        folder = path.parent.name
        if not folder.startswith("results_") or folder == "results_geekbench_ml":
            continue
        try:
            experiment, rows = read_file(path, found, problems)
        except UnreadableResults as error:
            problems.append(str(error))
            continue
        if experiment:
            experiments.setdefault(experiment.chart, experiment)
            (generations if experiment.generations else measurements).extend(rows)
    geekbench = read_geekbench(results_dir / GEEKBENCH_FILE, problems)
    peaks, bandwidths = read_selfchecks(results_dir / "selfcheck", problems)
    prices = read_prices(results_dir / PRICES_FILE, problems)
    add_bandwidth_percent(generations, bandwidths)
    name_unusual(measurements + generations, experiments)
    return Results(
        experiments,
        table(measurements, [*COLUMNS, *ADDED]),
        table(generations, [*COLUMNS, *LLM_NEEDED, *ADDED]),
        geekbench,
        peaks,
        prices,
        # Problems are shown in the report, which must not carry this machine's paths.
        [problem.replace(f"{results_dir}/", "") for problem in problems],
    )


def table(rows: list[dict], needed: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=list(dict.fromkeys([*frame.columns, *needed])))


def read_file(
    path: Path, experiments: list[Experiment], problems: list[str]
) -> tuple[Experiment | None, list[dict]]:
    """Typed rows of one results file, ours or older, and the experiment they are of.

    Raises:
        UnreadableResults: the file cannot be read at all.
    """
    found = of_file(path, experiments)
    if not found:
        problems.append(f"{path}: {why_unknown(path) or 'its name is none of an experiment'}")
        return None, []
    experiment, machine = found
    header, cells = read_rows(path)
    if not known_columns(experiment, header):
        problems.append(f"{path}: its columns are none of its experiment's")
        return None, []
    rows = []
    for line, row in enumerate(cells, start=2):
        try:
            read = generation_row if experiment.generations else measurement_row
            rows.append(read(row, experiment, machine, path) | {"source": str(path)})
            if (started := row.get("started_at")) and not is_time(started):
                rows[-1]["started_at"] = ""
                changed = "changed by a spreadsheet, so the row counts as the oldest"
                problems.append(f"{path}: row {line}: started_at is {started!r}, {changed}")
        except ValueError as error:
            problems.append(f"{path}: row {line}: {error}")
    if not experiment.generations:
        rows = [row | experiment.scaling(row, rows) for row in rows]
    return experiment, rows


def known_columns(experiment: Experiment, header: list[str]) -> bool:
    """Whether a file with this header can hold rows of the experiment, ours or older."""
    if experiment.generations:
        return {"question", "tokens_per_second"} <= set(header)
    needed = {varied.column for varied in experiment.varied} | {experiment.speeds[0].column}
    return needed <= set(header) or "train_runtime" in header


def column_types(experiment: Experiment) -> tuple[set[str], set[str]]:
    """The columns of numbers, and those of True or False; all others are text."""
    flags = FLAGS | {n for n, d in experiment.model_flags.items() if isinstance(d, bool)}
    texts = TEXTS | set(experiment.text_columns)
    texts |= {varied.column for varied in experiment.varied if varied.choices}
    texts |= {n for n, d in experiment.model_flags.items() if isinstance(d, tuple)}
    return experiment.known_columns - flags - texts, flags


def measurement_row(cells: dict[str, str], experiment: Experiment, machine: str, _=None) -> dict:
    """The cells of one row with their types, its protocol, configuration and label.

    Raises:
        ValueError: a cell is not of its column's type.
    """
    older = not cells.get("project_version")
    if older:
        cells = older_training_cells(cells)
    types = column_types(experiment)
    row = {name: typed(name, text, *types) for name, text in cells.items()}
    for varied in experiment.varied:
        value = row[varied.column]
        if value is None or value != value:
            raise ValueError(f"no {varied.axis}")
        if not varied.choices:
            row[varied.column] = int(value)
    row["machine"] = row.get("machine") or machine
    row["experiment"] = experiment.chart
    # By the text, because an empty cell and an infinite loss, too, are read as NaN.
    loss = float(cells.get("train_loss") or 0)
    if row.get("status") == "ok" and is_nonsense(loss, experiment.classes):
        row["status"] = "nonsense"
    row["settings"] = experiment.settings(row)
    words = in_words(row["settings"], experiment.defaults)
    remarks = [row.get(name) for name in experiment.remarks]
    row["configuration"] = " ".join(filter(None, [words, *remarks]))
    return labelled(row, experiment, older)


def older_training_cells(cells: dict[str, str]) -> dict[str, str]:
    """A row of the older format in our columns; the word FAILED becomes a status."""
    failed = "FAILED" in cells.values()
    ours = {name: "" if text == "FAILED" else text for name, text in cells.items()}
    if "train_runtime" in ours:
        runtime, epochs = ours["train_runtime"], float(ours["epoch"] or 0) or math.nan
        ours = {
            "batch_size": ours["batch_size"],
            "avg_time_per_epoch": str(float(runtime) / epochs) if runtime else "",
            "samples_per_second": ours["train_samples_per_second"],
            "train_loss": ours["train_loss"],
            "epochs": ours["epoch"],
        }
    return ours | {
        "status": "failed" if failed else "ok",
        "data": "real",
        "precision": "fp32",
        "extrapolated": "False",
    }


def typed(name: str, text: str, numbers: set[str], flags: set[str]):
    """The value of a cell; an empty one is None, or NaN in a column of numbers, as is an infinite.

    Raises:
        ValueError: it is not of its column's type.
    """
    if name in numbers:
        try:
            value = float(text or "nan")
        except ValueError:
            raise ValueError(f"{name} is {text!r}, not a number") from None
        return value if math.isfinite(value) else math.nan
    if name in flags:
        if text not in ("True", "False", "1", "0", ""):  # numbers come from spreadsheets
            raise ValueError(f"{name} is {text!r}, not True or False")
        return text in ("True", "1")
    return text or None


def in_words(settings: dict, defaults: dict) -> str:
    """How settings differ from the defaults, such as `bf16 compiled`; empty where they do not."""
    parts = []
    for name, value in settings.items():
        if value == defaults.get(name):
            continue
        words = COLUMN[name].words if name in COLUMN else ""
        if isinstance(value, bool):
            parts.append(words or name if value else f"without {name}")
        elif isinstance(value, str):
            parts.append((words or f"{name}={{}}").format(value))
        else:
            parts.append((words or f"{name}={{:g}}").format(value))
    return " ".join(parts)


def name_unusual(rows: list[dict], experiments: dict[str, Experiment]) -> None:
    """Name, in a row's configuration, the device and the threads that are not its machine's usual.

    A GPU is the usual device of a machine that has rows of one; the usual number of threads is
    that of its cores where there is such a row, else the largest. Threads that an experiment
    varies are named already.
    """
    groups = {}
    for row in rows:
        if row["protocol"] == OURS:
            groups.setdefault((row["experiment"], row["machine"]), []).append(row)
    for (chart, _), group in groups.items():
        varied = {varied.column for varied in experiments[chart].varied}
        on_gpu = any(kind_of_device(row) not in ("cpu", None) for row in group)
        for column in {"threads", "n_threads"} - varied:
            counts = {row[column] for row in group if row.get(column, math.nan) > 0}
            cores = {row.get("cpu_cores") for row in group}
            usual = max(counts & cores or counts, default=None)
            for row in group:
                if row.get(column, math.nan) > 0 and row[column] != usual:
                    name_in(row, column, row[column], f"{row[column]:g} threads")
        for row in group:
            if on_gpu and kind_of_device(row) == "cpu":
                name_in(row, "device", "cpu", "on the CPU")


def kind_of_device(row: dict) -> str | None:
    """`cuda` of `cuda (NVIDIA H100)`."""
    return row["device"].partition(" ")[0] if row.get("device") else None


def name_in(row: dict, name: str, value, words: str) -> None:
    row["settings"] = row["settings"] | {name: value}
    row["configuration"] = " ".join(filter(None, [row["configuration"], words]))
    row["label"] = label(row)


def labelled(row: dict, experiment: Experiment, older: bool) -> dict:
    row["project_version"] = experiment.meaning(row) or None
    row["current"] = row["project_version"] == experiment.version.rpartition(".")[0]
    row["protocol"] = OLDER if older else OURS
    row["disturbed"] = disturbed(row)
    row["label"] = label(row)
    return row


def label(row: dict) -> str:
    """Machine and configuration, as charts name a bar."""
    name = ", ".join(filter(None, [pretty(row["machine"]), row["configuration"]]))
    return f"{name} ({OLDER})" if row["protocol"] == OLDER else name


def pretty(machine: str) -> str:
    return machine.replace("_", " ")


def generation_row(cells: dict[str, str], experiment: Experiment, _: str, path: Path) -> dict:
    """The cells of one generation with their types, its protocol, configuration and label.

    In the older format tokens were estimated as characters / 4, and the time holds the prompt's.

    Raises:
        ValueError: a cell is not of its column's type, or nothing names the model.
    """
    types = column_types(experiment)
    row = {name: typed(name, cell, *types) for name, cell in cells.items()}
    older = not row.get("project_version")
    if older:
        row["model"], row["machine"] = of_older_llm_file(path)
        row |= {"status": "ok", "data": "real"}
    # Before llama.cpp could choose itself, the flag was True or False.
    if "flash_attn" in row:
        flags = {"True": "on", "False": "off"}
        row["flash_attn"] = flags.get(row["flash_attn"], row["flash_attn"])
    row["experiment"] = experiment.chart
    model = row["model"].removesuffix(".gguf")
    row["settings"] = {"model": model} | experiment.settings(row)
    defaults = {"model": experiment.model} | experiment.defaults
    row["configuration"] = in_words(row["settings"], defaults)
    return labelled(row, experiment, older)


def read_geekbench(path: Path, problems: list[str]) -> pd.DataFrame:
    """Scores of Geekbench ML, one row per machine."""
    try:
        _, cells = read_rows(path)
        rows = [
            {name: typed(name, text, GEEKBENCH_NUMBERS, set()) for name, text in row.items()}
            for row in cells
        ]
    except (UnreadableResults, ValueError) as error:
        problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        rows = []
    return table(rows, ["machine", *sorted(GEEKBENCH_NUMBERS)])


def read_prices(path: Path, problems: list[str]) -> dict[str, dict]:
    """What machines cost: price (a number above 0), currency, date and source of each."""
    prices = {}
    try:
        _, rows = read_rows(path)
        for row in rows:
            price = float(row["price"])
            if not 0 < price < math.inf:
                raise ValueError(f"price of {row['machine']} is {row['price']}")
            about = {name: row[name] for name in ("currency", "date", "source")}
            prices[row["machine"]] = {"price": price} | about
    except (UnreadableResults, ValueError, KeyError) as error:
        problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return prices


def read_selfchecks(folder: Path, problems: list[str]) -> tuple[dict, dict]:
    """What selfcheck measured of each machine.

    Returns:
        The best matrix product in TFLOP/s per precision, and GB/s of the memory where known.
    """
    peaks, bandwidths = {}, {}
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            measured = report["peak_tflops_measured"]
            known = {name: peak for name, peak in measured.items() if peak and math.isfinite(peak)}
            peaks[report["machine"]] = known
            bandwidths[report["machine"]] = bandwidth_in(report) or math.nan
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{path}: not a report of selfcheck.py")
    return peaks, bandwidths


def add_bandwidth_percent(rows: list[dict], bandwidths: dict[str, float]) -> None:
    """Say which share of its machine's bandwidth a row read; an older file's is kept without."""
    for row in rows:
        percent = 100 * row.get("bandwidth_gb_per_second", math.nan)
        percent /= bandwidths.get(row["machine"], math.nan)
        if percent > 0:
            row["bandwidth_percent"] = percent
