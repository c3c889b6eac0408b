"""Results read back into tables: our rows and the older, published ones, and the best evidence.

Rows of the older format (published in 2023 by the original collection) were measured under
another protocol: `protocol` is "2023" for them, and their label ends in "(2023)".
"""

import json
import math
import statistics
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy.special import stdtrit  # Student's t quantile; scipy.stats takes seconds to import

from utils import PROJECT_VERSION
from utils_experiments import (
    BY_CHART,
    EXTRA_COLUMNS,
    LLM_CHART,
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
BENCH_QUESTIONS = ("pp512", "tg128")  # llama-bench's figures, in rows of their own
GEEKBENCH_FILE = "results_geekbench_ml/geekbench_ml_0.6.csv"
GEEKBENCH_NUMBERS = {
    *("cpu_cores", "cpu_score", "gpu_cores", "gpu_score", "neural_engine_score"),
}
# What charts and comparisons need even where no file has it.
NEEDED = [
    *COLUMNS,
    *EXTRA_COLUMNS,
    *MODEL_FLAGS,
    "experiment",
    "protocol",
    "configuration",
    "label",
]
LLM_NEEDED = [*LLM_COLUMNS, "protocol", "configuration", "label"]


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


# The best evidence


def best_evidence(training: pd.DataFrame, also_by: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row per experiment, machine, configuration and batch size.

    A good row before a failed one, measured whole before extrapolated, real before synthetic data,
    this project version's before another's, then the newest.

    Args:
        also_by: further columns in which rows must agree to stand for one another.
    """
    key = ["experiment", "protocol", "machine", "configuration", "batch_size", *also_by]
    order = {
        "_good": is_good(training),
        "_whole": training["extrapolated"] != True,  # noqa: E712
        "_real": training["data"] == "real",
        "_current": training["project_version"] == PROJECT_VERSION,
        "_started": training["started_at"].fillna("").astype(str),
    }
    ranked = training.assign(**order).sort_values(list(order), kind="stable")
    return ranked.drop_duplicates(key, keep="last").drop(columns=list(order)).sort_values(key)


def is_good(training: pd.DataFrame) -> pd.Series:
    return (training["status"] == "ok") & (training["avg_time_per_epoch"] > 0)


def token_rates(generations: pd.DataFrame, also_by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Mean tokens per second of each machine and model, with its 95 % interval's half-width.

    `test` is `generation` and `prompt` (over all questions), `tg128` and `pp512` (llama-bench's).
    Real models before synthetic ones, this project version before another; of a repeated
    generation the newest.
    """
    good = generations[generations["status"] == "ok"].assign(
        _real=generations["data"] == "real",
        _current=generations["project_version"] == PROJECT_VERSION,
        _started=generations["started_at"].fillna("").astype(str),
    )
    rates = []
    key = ["protocol", "label", "machine", "configuration", "model", *also_by]
    for group, rows in good.groupby(key, dropna=False):
        best = rows[["_real", "_current"]].apply(tuple, axis=1).max()
        rows = rows[rows[["_real", "_current"]].apply(tuple, axis=1) == best]
        rows = rows.sort_values("_started", kind="stable")
        rows = rows.drop_duplicates(["question", "question_iter"], keep="last")
        asked = ~rows["question"].isin(BENCH_QUESTIONS)
        for test, chosen, column in (
            ("generation", asked, "tokens_per_second"),
            ("prompt", asked, "prompt_tokens_per_second"),
            ("tg128", rows["question"] == "tg128", "tokens_per_second"),
            ("pp512", rows["question"] == "pp512", "prompt_tokens_per_second"),
        ):
            values = rows.loc[chosen, column].dropna().tolist()
            if values:
                mean, half_width = mean_ci95(values)
                rates.append(
                    dict(zip(key, group, strict=True))
                    | {
                        "data": rows["data"].iloc[0],
                        "project_version": rows["project_version"].iloc[0],
                    }
                    | {"framework": rows["framework"].iloc[0], "test": test}
                    | {"rate": mean, "rate_ci95": half_width, "runs": len(values)}
                )
    columns = [*key, "data", "project_version", "framework", "test", "rate", "rate_ci95", "runs"]
    return table(rates, columns)


def mean_ci95(values: list[float]) -> tuple[float, float]:
    """Mean, and half-width of its 95 % interval by Student's t; NaN for a single value."""
    if len(values) < 2:
        return values[0], math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), error * float(stdtrit(len(values) - 1, 0.975))


def relative_speeds(results: Results, reference: str | None = None) -> pd.DataFrame:
    """How many times as fast as a reference machine each machine is, per experiment, as a log.

    A training experiment's is the geometric mean over the batch sizes that both measured. Only
    default configurations count; older results have a reference of their own.

    Args:
        reference: a machine; where a protocol lacks it, its machine with the most rows instead.

    Returns:
        Columns protocol, experiment, machine, label, reference, log_speed.
    """
    rows = best_evidence(results.training)
    rows = rows[is_good(rows)].rename(columns={"batch_size": "test"})
    rows = rows.assign(log_speed=[-math.log(seconds) for seconds in rows["avg_time_per_epoch"]])
    rates = token_rates(results.generations)
    rates = rates[rates["test"] == "generation"].assign(experiment=LLM_CHART)
    rates["log_speed"] = [math.log(rate) for rate in rates["rate"]]
    columns = ["protocol", "experiment", "machine", "label", "test", "log_speed"]
    both = pd.concat(part[part["configuration"] == ""][columns] for part in (rows, rates))
    relative = []
    for _, group in both.groupby("protocol"):
        counts = group["machine"].value_counts()
        base = reference if reference in counts else counts.sort_index().idxmax()
        of_base = group[group["machine"] == base].set_index(["experiment", "test"])["log_speed"]
        pairs = group.join(of_base.rename("base"), on=["experiment", "test"]).dropna(subset="base")
        pairs["log_speed"] -= pairs.pop("base")
        pairs["reference"] = base
        relative.append(pairs)
    key = ["protocol", "experiment", "machine", "label", "reference"]
    if not relative:
        return table([], [*key, "log_speed"])
    return pd.concat(relative).groupby(key, as_index=False)["log_speed"].mean()


def share_of_peak(results: Results) -> pd.DataFrame:
    """TFLOP/s of every row as a share of its machine's measured peak in the same precision."""
    rows = best_evidence(results.training)
    rows = rows[is_good(rows) & rows["tflops_per_second"].notna()]
    peaks = [
        results.peaks.get(machine, {}).get(precision, math.nan)
        for machine, precision in zip(rows["machine"], rows["precision"], strict=True)
    ]
    shares = rows.assign(
        peak_tflops=pd.Series(peaks, rows.index, dtype=float),
        experiment=[BY_CHART[chart].title for chart in rows["experiment"]],
    )
    shares["mfu_percent"] = 100 * shares["tflops_per_second"] / shares["peak_tflops"]
    columns = ["experiment", "label", "batch_size", "precision", "tflops_per_second"]
    return shares.dropna(subset="peak_tflops")[[*columns, "peak_tflops", "mfu_percent"]]
