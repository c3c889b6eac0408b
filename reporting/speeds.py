"""What the tables say: the best evidence per configuration, rates, relative speeds, shares."""

import math

import pandas as pd
from utils_experiments import BY_CHART, LLM_CHART

from harness.generation import mean_and_interval
from reporting.tables import Results, table
from utils import PROJECT_VERSION, UserError

BENCH_QUESTIONS = ("pp512", "tg128")  # llama-bench's figures, in rows of their own


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
    shown = list(dict.fromkeys([*key, "data", "project_version", "framework"]))
    for _, rows in good.groupby(key, dropna=False):
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
                mean, half_width = mean_and_interval(values)
                half_width = math.nan if half_width is None else half_width
                shared = rows[shown].iloc[-1].to_dict()
                measured = {"rate": mean, "rate_ci95": half_width, "runs": len(values)}
                rates.append(shared | {"test": test} | measured)
    return table(rates, [*shown, "test", "rate", "rate_ci95", "runs"])


def relative_speeds(results: Results, reference: str | None = None) -> pd.DataFrame:
    """How many times as fast as a reference machine each machine is, per experiment, as a log.

    A training experiment's is the geometric mean over the batch sizes that both measured. Only
    default configurations count; older results have a reference of their own.

    Args:
        reference: a machine; a protocol that lacks it takes its machine with the most numbers.

    Returns:
        Columns protocol, experiment, machine, label, reference, log_speed.

    Raises:
        UserError: the reference machine has no results at all.
    """
    rows = best_evidence(results.training)
    rows = rows[is_good(rows)].rename(columns={"batch_size": "test"})
    rows = rows.assign(log_speed=[-math.log(seconds) for seconds in rows["avg_time_per_epoch"]])
    rates = token_rates(results.generations)
    rates = rates[rates["test"] == "generation"].assign(experiment=LLM_CHART)
    rates["log_speed"] = [math.log(rate) for rate in rates["rate"]]
    columns = ["protocol", "experiment", "machine", "label", "test", "log_speed"]
    both = pd.concat(part[part["configuration"] == ""][columns] for part in (rows, rates))
    machines = sorted(both["machine"].unique())
    if reference and reference not in machines:
        raise UserError(f"no results of {reference!r}; there are {', '.join(machines) or 'none'}")
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
