"""One table of speeds: every number of every experiment, the best evidence for each, compared.

Charts, comparison, overview and page work on this table only, so that a new experiment appears in
all of them without a line changed there.
"""

import math
import re

import pandas as pd

from harness.experiment import Experiment, Speed
from harness.process import UserError
from harness.questions import SPEED_OF, figure_parts
from harness.windows import mean_and_interval
from reporting.tables import Results, table

COLUMNS = [
    "experiment",  # the name of its chart
    "protocol",
    "machine",
    "configuration",  # how it differs from the defaults, in words
    "label",  # machine and configuration
    "varied",  # the values of what the experiment varies, a tuple
    "measure",  # which of the experiment's numbers, where it has several
    "test",  # both in words, such as `batch 32`
    "main",  # whether it stands for its experiment in the overview
    "speed",
    "ci95",  # half-width of the 95 % interval
    "unit",
    "higher_is_better",
    "extrapolated",
    "disturbed",  # whether others had a part in the number
    "data",
    "status",
    "framework",
    "framework_major",  # `torch 2` of `torch 2.15.0+cu130`
    "project_version",  # the first two numbers, which say what its numbers mean
    "current",  # whether that is the experiment's version of today
    "started_at",
    "settings",  # all that changes what is measured, by name
    "source",
]
# Two rows that agree in these say the same thing: one is the better evidence.
KEY = ["experiment", "protocol", "machine", "configuration", "varied", "measure"]


def speeds(results: Results, also_by: tuple[str, ...] = ()) -> pd.DataFrame:
    """The table, one row per number and best evidence; failed ones have a status, and no speed.

    Args:
        also_by: further columns in which rows must agree to stand for one another.
    """
    parts = [best_evidence(token_speeds(results, also_by)[COLUMNS], also_by)]
    # One by one, because what experiments vary are tuples of unequal lengths, which do not sort.
    measured = with_major_version(results.measurements)
    for chart, rows in measured.groupby("experiment", sort=False):
        experiment = results.experiments[chart]
        numbers = [measured_speeds(rows, experiment, speed) for speed in experiment.speeds]
        parts.append(best_evidence(pd.concat(numbers)[COLUMNS], also_by))
    parts = [part for part in parts if len(part)]
    everything = pd.concat(parts, ignore_index=True) if parts else table([], COLUMNS)
    place = {chart: number for number, chart in enumerate(results.experiments)}
    return everything.sort_values("experiment", key=lambda charts: charts.map(place), kind="stable")


def measured_speeds(rows: pd.DataFrame, experiment: Experiment, speed: Speed) -> pd.DataFrame:
    """One of an experiment's numbers of each of its rows."""
    # Beside other experiments' rows, which lack these columns, they were read as floats.
    rows = rows.astype({v.column: int for v in experiment.varied if not v.choices})
    values = pd.to_numeric(rows[speed.column])
    width = rows.get(f"{speed.column}_ci95")
    varied = [varied.column for varied in experiment.varied]
    good = (rows["status"] == "ok") & (values > 0)
    return rows.assign(
        varied=list(rows[varied].itertuples(index=False, name=None)),
        measure=speed.name,
        test=[experiment.test(row, speed) for row in rows.to_dict("records")],
        main=speed is experiment.speeds[0],
        speed=values.where(good),
        ci95=math.nan if width is None else pd.to_numeric(width),
        unit=speed.unit,
        higher_is_better=speed.higher_is_better,
        # A row without the number is no evidence for it, whatever it says.
        status=rows["status"].where(good | (rows["status"] != "ok"), "failed"),
    )


def with_major_version(rows: pd.DataFrame) -> pd.DataFrame:
    major = [
        match[0] if (match := re.match(r"\S+ \d+", str(framework))) else ""
        for framework in rows["framework"]
    ]
    return rows.assign(framework_major=major)


def best_evidence(rows: pd.DataFrame, also_by: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row per experiment, machine, configuration and number; `varied` of all is equally long.

    A good row before a failed one, then as `evidence` has it.
    """
    key = [*KEY, *also_by]
    order = {"_good": is_good(rows), **evidence(rows)}
    ranked = rows.assign(**order).sort_values(list(order), kind="stable")
    best = ranked.drop_duplicates(key, keep="last").drop(columns=list(order))
    return best.sort_values(key).reset_index(drop=True)


def evidence(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """By what good rows that measure the same thing are ranked, the weightiest first.

    Undisturbed before disturbed, measured whole before extrapolated, real before synthetic data,
    this version's meaning before another's, then the newest.
    """
    return {
        "_undisturbed": rows["disturbed"] != True,  # noqa: E712
        "_whole": rows["extrapolated"] != True,  # noqa: E712
        "_real": rows["data"] == "real",
        "_current": rows["current"] == True,  # noqa: E712
        "_started": rows["started_at"].astype(object).fillna("").astype(str),
    }


def is_good(rows: pd.DataFrame) -> pd.Series:
    return (rows["status"] == "ok") & rows["speed"].notna()


def token_speeds(results: Results, also_by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Mean tokens per second of each machine, model and configuration, with its 95 % interval.

    `measure` is `generation` and `prompt` (over all questions), `tg128` and `pp512`
    (llama-bench's), and these at depth or in parallel, such as `tg128@d4096`. `runs` is the number
    of rows in the mean, which are the best evidence there is, and of a repeated one the newest.
    """
    generations = with_major_version(results.generations)
    good = generations[generations["status"] == "ok"]
    means = []
    key = ["experiment", "protocol", "machine", "configuration", *also_by]
    for _, rows in good.groupby(key, dropna=False):
        figures = {q: figure_parts(q) for q in rows["question"].unique() if figure_parts(q)}
        asked = ~rows["question"].isin(figures)
        for measure, chosen, column in (
            ("generation", asked, "tokens_per_second"),
            ("prompt", asked, "prompt_tokens_per_second"),
            *((q, rows["question"] == q, SPEED_OF[parts[0]]) for q, parts in figures.items()),
        ):
            measured = rows[chosen & (rows[column] > 0)]
            if len(measured):
                best = best_repetitions(measured)
                mean, half_width = mean_and_interval(best[column].tolist())
                means.append(
                    best.iloc[-1].to_dict()
                    | {"measure": measure, "test": measure, "main": measure == "generation"}
                    | {"speed": mean, "ci95": math.nan if half_width is None else half_width}
                    | {"unit": "tokens/s", "higher_is_better": True, "varied": ()}
                    | {"runs": len(best)}
                )
    return table(means, [*COLUMNS, "runs"])


def best_repetitions(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows whose mean is wanted those of the best evidence, the newest of each, by time."""
    *weights, newest = evidence(rows).values()
    rows = rows.loc[newest.sort_values(kind="stable").index]
    *_, (_, best) = rows.groupby(weights)  # in the order of their weight
    return best.drop_duplicates(["question", "question_iter"], keep="last")


def relative_speeds(results: Results, reference: str | None = None) -> pd.DataFrame:
    """How many times as fast as a reference machine each machine is, per experiment, as a log.

    An experiment's is the geometric mean over the numbers that both measured. Only default
    configurations count; older results have a reference of their own.

    Args:
        reference: a machine; a protocol that lacks it takes its machine with the most numbers.

    Returns:
        Columns protocol, experiment, machine, label, reference, log_speed, and disturbed: whether
        others disturbed a run of either machine that is in it.

    Raises:
        UserError: the reference machine has no results at all.
    """
    rows = speeds(results)
    rows = rows[is_good(rows) & rows["main"].astype(bool) & (rows["configuration"] == "")]
    logs = [math.log(speed) for speed in rows["speed"]]
    signs = [1 if higher else -1 for higher in rows["higher_is_better"]]
    rows = rows.assign(log_speed=[log * sign for log, sign in zip(logs, signs, strict=True)])
    machines = sorted(rows["machine"].unique())
    if reference and reference not in machines:
        raise UserError(f"no results of {reference!r}; there are {', '.join(machines) or 'none'}")
    relative = []
    for _, group in rows.groupby("protocol"):
        counts = group["machine"].value_counts()
        base = reference if reference in counts else counts.sort_index().idxmax()
        of_base = group[group["machine"] == base].set_index(["experiment", "test"])
        of_base = of_base[["log_speed", "disturbed"]].add_prefix("base_")
        pairs = group.join(of_base, on=["experiment", "test"]).dropna(subset="base_log_speed")
        pairs["log_speed"] -= pairs["base_log_speed"]
        pairs["disturbed"] = pairs["disturbed"].astype(bool) | pairs["base_disturbed"].astype(bool)
        pairs["reference"] = base
        relative.append(pairs)
    key = ["protocol", "experiment", "machine", "label", "reference"]
    if not relative:
        return table([], [*key, "log_speed", "disturbed"])
    groups = pd.concat(relative).groupby(key, as_index=False)
    return groups.agg({"log_speed": "mean", "disturbed": "any"})


def neighbours(results: Results, machine: str, most: int) -> list[str]:
    """A line for each of the machines whose speed is nearest to that of `machine`."""
    ours = [rows for _, rows in relative_speeds(results, machine).groupby("protocol")]
    ours = [rows for rows in ours if (rows["reference"] == machine).all()]
    others = [rows[rows["machine"] != machine] for rows in ours]
    if not others or others[0].empty:
        return [f"{machine}: no other machine to compare with, yet"]
    means = (
        others[0]
        .groupby("machine")
        .agg(
            mean=("log_speed", "mean"), count=("log_speed", "count"), disturbed=("disturbed", "sum")
        )
    )
    nearest = means.reindex(means["mean"].abs().sort_values().index).head(most)
    return [
        f"{machine} is {math.exp(-mean):.2f} times as fast as {other}, over {count} experiments"
        f"{f', {disturbed} of them disturbed' if disturbed else ''}"
        for other, mean, count, disturbed in nearest.itertuples()
    ]


def measurements(results: Results) -> pd.DataFrame:
    """Whole rows of the best evidence for each experiment's main number, with its `speed`.

    For what is read beside the speed: where the device waited, TFLOP/s, memory.
    """
    parts = []
    for chart, rows in results.measurements.groupby("experiment", sort=False):
        experiment = results.experiments[chart]
        parts.append(best_evidence(measured_speeds(rows, experiment, experiment.speeds[0])))
    if not parts:
        return table([], [*results.measurements.columns, *COLUMNS])
    return pd.concat(parts, ignore_index=True)


def share_of_peak(results: Results) -> pd.DataFrame:
    """TFLOP/s of every row as a share of its machine's measured peak in the same precision."""
    rows = measurements(results)
    rows = rows[is_good(rows) & rows["tflops_per_second"].notna()]
    peaks = [
        results.peaks.get(machine, {}).get(precision, math.nan)
        for machine, precision in zip(rows["machine"], rows["precision"], strict=True)
    ]
    shares = rows.assign(
        peak_tflops=pd.Series(peaks, rows.index, dtype=float),
        experiment=[results.experiments[chart].title for chart in rows["experiment"]],
    )
    shares["mfu_percent"] = 100 * shares["tflops_per_second"] / shares["peak_tflops"]
    columns = ["experiment", "label", "test", "precision", "tflops_per_second"]
    return shares.dropna(subset="peak_tflops")[[*columns, "peak_tflops", "mfu_percent"]]
