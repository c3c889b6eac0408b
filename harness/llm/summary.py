"""What is said of all rows of a language model together: means, and plain verdicts."""

import statistics

from harness import markdown
from harness.disturbance import OTHERS_PERCENT
from harness.questions import SPEED_OF, figure_parts
from harness.windows import mean_and_interval


def summary(rows: list[dict], form: str, bandwidth: float | None) -> list[str]:
    """Means over the good rows with their 95 % intervals, and verdicts.

    Args:
        form: `markdown` for llama-bench's table before them.
        bandwidth: GB/s of the machine's memory, where selfcheck measured it.
    """
    figures = dict.fromkeys(row["question"] for row in rows if figure_parts(row["question"]))
    lines = [markdown.llama_bench_table(rows), ""] if form == "markdown" else []
    for name, column, unit in (
        *((figure, SPEED_OF[figure_parts(figure)[0]], "tokens/s") for figure in figures),
        *((f"{figure}, each", "tokens_per_second_each", "tokens/s") for figure in figures),
        ("answers", "tokens_per_second", "tokens/s"),
        ("answers, prompt", "prompt_tokens_per_second", "tokens/s"),
        ("answers, first token after", "time_to_first_token", "s"),
        ("answers, outside the model", "outside_model_percent", "%"),
    ):
        values = values_of(rows, column, name.partition(",")[0])
        if values:
            mean, half_width = mean_and_interval(values)
            interval = "" if half_width is None else f" +/- {half_width:.3g}"
            lines.append(f"{name:<27}{mean:>9.4g}{interval} {unit} ({len(values)} rows)")
    return lines + verdicts(rows, bandwidth)


def kind(row: dict) -> str:
    """Which number of the summary a row belongs to: the figure's, or that of the answers."""
    return row["question"] if figure_parts(row["question"]) else "answers"


def verdicts(rows: list[dict], bandwidth: float | None = None) -> list[str]:
    """Plain sentences on what a reader must know about the numbers."""
    found = []
    outside = mean_of(rows, "outside_model_percent", "answers")
    if (outside or 0) > 5:
        found.append(
            f"{outside:.0f} % of the time of the answers went to sampling and Python, outside of "
            "the model; tokens per second leave it out"
        )
    read = mean_of(rows, "bandwidth_gb_per_second", "tg128")
    if read and bandwidth:
        share = 100 * read / bandwidth
        limit = "near its limit" if share > 70 else "memory is not what limits it"
        found.append(
            f"generating read {read:.3g} GB/s, {share:.0f} % of the bandwidth of memory that "
            f"selfcheck measured: {limit}"
        )
    elif read:
        found.append(f"generating read {read:.3g} GB/s; selfcheck.py measures what share that is")
    if used := {row["flash_attn_used"] for row in rows if row.get("flash_attn_used")}:
        found.append(f"flash attention was {' and '.join(sorted(used))}")
    sustained = [row["sustained_ratio"] for row in rows if row.get("sustained_ratio")]
    if sustained and sustained[-1] < 0.9:
        found.append(
            "throttled, or slowed by another program: "
            f"the answers ended at {sustained[-1]:.2f} of their first speed"
        )
    others = mean_of(rows, "other_load_percent")
    if (others or 0) > OTHERS_PERCENT:
        found.append(f"other programs took {others:.0f} % of the processor meanwhile")
    failed = sum(row["status"] != "ok" for row in rows)
    if failed:
        found.append(f"{failed} of {len(rows)} rows failed")
    if any(row["data"] == "synthetic" for row in rows):
        found.append("synthetic model: random weights, the same tensors")
    return found


def mean_of(rows: list[dict], column: str, name: str | None = None) -> float | None:
    """Mean of a column over the good rows, or over those of one figure or of the answers."""
    values = values_of(rows, column, name)
    return statistics.fmean(values) if values else None


def values_of(rows: list[dict], column: str, name: str | None = None) -> list[float]:
    return [
        row[column]
        for row in rows
        if row["status"] == "ok" and row.get(column) is not None and name in (None, kind(row))
    ]
