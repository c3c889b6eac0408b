"""Charts of the tables that reporting.tables reads: one figure each, colours fixed per machine."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator
from utils_experiments import BY_CHART, LLM_CHART, LLM_TITLE, TRAINING

from harness.terminal import input_bound
from reporting.speeds import best_evidence, is_good, relative_speeds, token_rates
from reporting.tables import OLDER, OURS, Results
from utils import PROJECT_VERSION

# Twelve colours that stay apart for colour-blind readers (M. Krzywinski's palette,
# https://mk.bcgsc.ca/colorblind/), neighbours in this order unlike each other.
COLOURS = [
    *("#008DF9", "#E20134", "#009F81", "#FFC33B", "#8400CD", "#FF6E3A"),
    *("#00C2F9", "#9F0162", "#00FCCF", "#FF5AAF", "#A40122", "#FFB2FD"),
]
EXTRAPOLATED, SYNTHETIC = "////", "..."
HATCHES = {EXTRAPOLATED: "extrapolated from a short run", SYNTHETIC: "synthetic data"}
PROTOCOLS = {OURS: "", OLDER: f"published results of {OLDER}, measured another way"}
LABELLED_BARS = 100  # more bars than these carry no numbers


def machine_colours(results: Results) -> dict[str, tuple]:
    """A colour for every machine, the same in all charts; after twelve they repeat, darker."""
    measured = {*results.training["machine"], *results.generations["machine"]}
    machines = [*sorted(measured), *sorted(set(results.geekbench["machine"]) - measured)]
    return {
        name: tuple(part * 0.6 ** (i // len(COLOURS)) for part in to_rgb(COLOURS[i % len(COLOURS)]))
        for i, name in enumerate(machines)
    }


def save(figure: Figure, path: Path) -> str:
    """Write the figure as a PNG; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return str(path)


def empty(title: str) -> Figure:
    figure = Figure(figsize=(12, 3), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no results yet", ha="center", va="center", fontsize=16, color="0.4")
    return figure


# Time per epoch of one experiment


def time_per_epoch(results: Results, chart: str) -> Figure:
    """Batch size against seconds per epoch, a bar per machine; older results in their own panel."""
    title = f"{BY_CHART[chart].title}: time per epoch (lower is better)"
    rows = best_evidence(results.training[results.training["experiment"] == chart])
    if rows.empty:
        return empty(title)
    rows = with_series(rows)
    colours = shades(rows, machine_colours(results))
    panels = [protocol for protocol in PROTOCOLS if (rows["protocol"] == protocol).any()]
    height = 4.6 * len(panels) + 0.22 * math.ceil(len(colours) / 3)
    figure = Figure(figsize=(15, height + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=14)
    times = rows.loc[is_good(rows), "avg_time_per_epoch"]
    all_axes = figure.subplots(len(panels), squeeze=False, sharey=True)[:, 0]
    for axes, protocol in zip(all_axes, panels, strict=True):
        draw_times(axes, rows[rows["protocol"] == protocol], colours)
        axes.set_title(PROTOCOLS[protocol], fontsize=11)
        logarithmic = len(times) and times.max() > 30 * times.min()
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_ylabel("seconds per epoch" + (" (log scale)" if logarithmic else ""))
        axes.margins(y=0.2)
    handles = [Patch(facecolor=c, edgecolor="black", label=n) for n, c in colours.items()]
    handles += hatch_handles(rows)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def with_series(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds `series`, a bar's name: the label, and the version of a row that another one made."""
    older = (rows["protocol"] == OURS) & (rows["project_version"] != PROJECT_VERSION)
    names = [
        f"{label}, version {version}" if other else label
        for label, version, other in zip(rows["label"], rows["project_version"], older, strict=True)
    ]
    return rows.assign(series=names).sort_values(["machine", "series"])


def shades(rows: pd.DataFrame, colours: dict[str, tuple]) -> dict[str, tuple]:
    """A colour for every series: its machine's, the lighter the more series the machine has."""
    series = rows[["machine", "series", "protocol"]].drop_duplicates()
    ranks = series.groupby(["machine", "protocol"]).cumcount()
    return {
        name: tuple(1 - (1 - part) * 0.55**rank for part in colours[machine])
        for name, machine, rank in zip(series["series"], series["machine"], ranks, strict=True)
    }


def draw_times(axes, rows: pd.DataFrame, colours: dict[str, tuple]) -> None:
    """Groups of bars, one group per batch size; a failed one is a gap that says why."""
    sizes = sorted(rows["batch_size"].unique())
    width = 0.86 / rows["batch_size"].value_counts().max()
    crowded = len(rows) > 24
    numbers = {"fontsize": 6.5, "rotation": 90} if crowded else {"fontsize": 9}
    for place, size in enumerate(sizes):
        # The rows are sorted as the legend is.
        group = rows[rows["batch_size"] == size].assign(good=is_good).to_dict("records")
        for number, row in enumerate(group):
            x = place + (number - (len(group) - 1) / 2) * width
            if not row["good"]:
                draw_gap(axes, x, row, colours[row["series"]])
                continue
            drawn = draw_bar(axes, x, 0.94 * width, row, colours[row["series"]])
            if len(rows) <= LABELLED_BARS:
                axes.bar_label(drawn, fmt=three_digits, padding=2, **numbers)
    axes.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.set_xlabel("batch size")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def draw_bar(axes, x: float, width: float, row: dict, colour: tuple):
    seconds, error = row["avg_time_per_epoch"], row["avg_time_per_epoch_ci95"]
    return axes.bar(
        x, seconds, width, color=[colour], hatch=hatch(row),
        yerr=whiskers([seconds], [error]) if error > 0 else None,
        error_kw={"elinewidth": 1, "capsize": 2}, edgecolor="black", linewidth=0.5,
    )  # fmt: skip


def whiskers(values, half_widths) -> list:
    """Lengths below and above: nothing takes less than no time, however wide the interval is."""
    return [np.minimum(half_widths, values), half_widths]


def draw_gap(axes, x: float, row: dict, colour: tuple) -> None:
    reason = (row["status"] or "failed").replace("_", " ")
    where = axes.get_xaxis_transform()
    axes.plot(x, 0, "s", color=colour, markeredgecolor="black", transform=where, clip_on=False)
    axes.text(
        x, 0.03, reason, rotation=90, ha="center", va="bottom", fontsize=7, transform=where,
        color="0.25",
    )  # fmt: skip


def three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def hatch(row) -> str:
    marks = EXTRAPOLATED if row.get("extrapolated") == True else ""  # noqa: E712
    return marks + (SYNTHETIC if row["data"] == "synthetic" else "")


def hatch_handles(rows: pd.DataFrame) -> list[Patch]:
    """Legend entries of the hatches that are in use."""
    used = "".join(hatch(row) for _, row in rows.iterrows())
    return [
        Patch(facecolor="white", edgecolor="black", hatch=marks, label=meaning)
        for marks, meaning in HATCHES.items()
        if marks in used
    ]


# Horizontal bars, one per machine


def horizontal_bars(axes, names, values, errors, colours, hatches, fmt=three_digits) -> None:
    """A bar with its number per name, the first on top."""
    places = range(len(names))
    drawn = axes.barh(
        places, values, 0.8, color=colours, edgecolor="black", linewidth=0.5,
        xerr=None if errors is None else whiskers(values, errors),
        error_kw={"elinewidth": 1, "capsize": 2},
    )  # fmt: skip
    for patch, marks in zip(drawn, hatches, strict=True):
        patch.set_hatch(marks)
    axes.bar_label(drawn, fmt=fmt, padding=3, fontsize=9)
    axes.set_yticks(places, names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.18)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def panel_grid(title: str, panels: int, height: float) -> tuple[Figure, list]:
    """A figure with so many axes in two columns, each of `height` inches."""
    lines = math.ceil(panels / 2)
    figure = Figure(figsize=(15, lines * height + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=14)
    all_axes = list(figure.subplots(lines, min(2, panels), squeeze=False).flat)
    for axes in all_axes[panels:]:
        axes.set_axis_off()
    return figure, all_axes[:panels]


def tokens_per_second(results: Results) -> Figure:
    """Generation and prompt processing of the LLM, and llama-bench's figures where there are."""
    title = f"{LLM_TITLE}: tokens per second (higher is better)"
    rates = token_rates(results.generations)
    if rates.empty:
        return empty(title)
    tests = {
        "generation": "generation", "prompt": "reading the prompt",
        "tg128": "llama-bench tg128", "pp512": "llama-bench pp512",
    }  # fmt: skip
    ours = rates[rates["protocol"] == OURS]
    older = rates[rates["protocol"] == OLDER]
    panels = [(name, ours[ours["test"] == test]) for test, name in tests.items()]
    panels.append((f"{PROTOCOLS[OLDER]}\n(tokens estimated as characters / 4)", older))
    panels = [(name, rows) for name, rows in panels if len(rows)]
    most = max(len(rows) for _, rows in panels)
    figure, all_axes = panel_grid(title, len(panels), 1.3 + 0.32 * most)
    for axes, (name, rows) in zip(all_axes, panels, strict=True):
        rows = rows.sort_values("rate", ascending=False)
        horizontal_bars(
            axes, rows["label"], rows["rate"], rows["rate_ci95"].fillna(0),
            machine_shades(rows, results), [hatch(row) for _, row in rows.iterrows()],
        )  # fmt: skip
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("tokens per second")
    if handles := hatch_handles(rates):
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def machine_shades(rows: pd.DataFrame, results: Results) -> list[tuple]:
    """The colour of each row: its machine's, lighter where its configuration is not the default."""
    colours = machine_colours(results)
    return [
        tuple(1 - (1 - part) * (0.55 if changed else 1) for part in colours[machine])
        for machine, changed in zip(rows["machine"], rows["configuration"], strict=True)
    ]


# Where the device waited


def samples_per_second(results: Results) -> Figure:
    """End to end beside the device alone, at each machine's fastest batch size."""
    title = "Samples per second: end to end (bar) and the device alone (outline); higher is better"
    rows = best_evidence(results.training)
    rows = rows[is_good(rows) & rows["compute_samples_per_second"].notna()]
    rows = rows.sort_values("samples_per_second", ascending=False)
    rows = with_series(rows.drop_duplicates(["experiment", "label"]))
    panels = [e for e in TRAINING if (rows["experiment"] == e.chart).any()]
    if not panels:
        return empty(title)
    most = rows["experiment"].value_counts().max()
    figure, all_axes = panel_grid(title, len(panels), 1.3 + 0.36 * most)
    for axes, experiment in zip(all_axes, panels, strict=True):
        draw_waiting(axes, rows[rows["experiment"] == experiment.chart], results)
        axes.set_title(experiment.title, fontsize=11)
    if handles := hatch_handles(rows):
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def draw_waiting(axes, rows: pd.DataFrame, results: Results) -> None:
    rows = rows.sort_values("samples_per_second", ascending=False)
    alone = rows["compute_samples_per_second"]
    fastest = max(alone.max(), rows["samples_per_second"].max())
    if fastest > 30 * rows["samples_per_second"].min():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
    names = [waiting_label(row) for _, row in rows.iterrows()]
    horizontal_bars(
        axes, names, rows["samples_per_second"], rows["samples_per_second_ci95"].fillna(0),
        machine_shades(rows, results), [hatch(row) for _, row in rows.iterrows()], fmt="",
    )  # fmt: skip
    axes.barh(range(len(rows)), alone, 0.8, facecolor="none", edgecolor="black", linestyle="--")
    logarithmic = axes.get_xscale() == "log"
    axes.set_xlabel("samples per second" + (" (log scale)" if logarithmic else ""))


def waiting_label(row) -> str:
    """The series, its rate and batch size, and whether the device waited for data."""
    text = (
        f"{row['series']}\n{three_digits(row['samples_per_second'])} at batch {row['batch_size']:g}"
    )
    if input_bound(row):
        text += f", waited for data: {row['input_bound_percent']:.0f} % slower"
    return text


# All experiments at once


def overview(results: Results, reference: str | None = None) -> Figure:
    """Speed of each machine relative to a reference machine, over all experiments."""
    title = "Speed relative to a reference machine, over all experiments (higher is better)"
    speeds = relative_speeds(results, reference)
    if speeds.empty:
        return empty(title)
    panels = [protocol for protocol in PROTOCOLS if (speeds["protocol"] == protocol).any()]
    counts = [speeds.loc[speeds["protocol"] == p, "machine"].nunique() for p in panels]
    figure = Figure(figsize=(15, sum(1.4 + 0.34 * n for n in counts) + 1), layout="constrained")
    figure.suptitle(title, fontsize=14)
    ratios = [1.4 + 0.34 * count for count in counts]
    all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=ratios)[:, 0]
    for axes, protocol in zip(all_axes, panels, strict=True):
        draw_overview(axes, speeds[speeds["protocol"] == protocol], machine_colours(results))
        axes.set_title(PROTOCOLS[protocol], fontsize=11)
    handles = [
        axes.plot([], [], marker, color="white", markeredgecolor="black", label=title)[0]
        for marker, title in zip(MARKERS, experiment_titles().values(), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    return figure


MARKERS = ["o", "s", "^", "D", "v", "P", "*"]


def experiment_titles() -> dict[str, str]:
    return {experiment.chart: experiment.title for experiment in TRAINING} | {LLM_CHART: LLM_TITLE}


def draw_overview(axes, speeds: pd.DataFrame, colours: dict[str, tuple]) -> None:
    """A bar from 1 to the geometric mean over experiments, and a mark per experiment."""
    means = speeds.groupby(["machine", "label"])["log_speed"].agg(["mean", "count"])
    means = means.sort_values("mean", ascending=False).reset_index()
    names = [
        f"{label}: {math.exp(mean):.2f} ({count} experiment{'s' * (count > 1)})"
        for _, label, mean, count in means.itertuples(index=False)
    ]
    values = [math.exp(mean) - 1 for mean in means["mean"]]
    axes.set_xscale("log")
    axes.barh(
        range(len(names)), values, 0.8, left=1, edgecolor="black", linewidth=0.5,
        color=[colours[machine] for machine in means["machine"]],
    )  # fmt: skip
    places = {machine: place for place, machine in enumerate(means["machine"])}
    for marker, chart in zip(MARKERS, experiment_titles(), strict=True):
        rows = speeds[speeds["experiment"] == chart]
        axes.plot(
            rows["log_speed"].map(math.exp), rows["machine"].map(places), marker, markersize=6,
            color="white", markeredgecolor="black", alpha=0.9,
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=1)
    axes.use_sticky_edges = False
    axes.margins(x=0.05)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "2357" else "")
    low, high = axes.get_xlim()
    if high < 4 * low:
        # Too few of these lie between the two.
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5]))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", which="both", length=3.5, pad=3.5)
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"speed, {speeds['reference'].iloc[0].replace('_', ' ')} = 1 (log scale)")


# Geekbench ML


def geekbench_ml(results: Results) -> Figure:
    """Scores of Geekbench ML 0.6 on CPU, GPU and Neural Engine."""
    title = "Geekbench ML 0.6, inference scores (higher is better)"
    table = results.geekbench
    if table.empty:
        return empty(title)
    figure = Figure(figsize=(15, 1.6 + 0.36 * len(table)), layout="constrained")
    figure.suptitle(title, fontsize=14)
    units = {"cpu_score": "CPU", "gpu_score": "GPU", "neural_engine_score": "Neural Engine"}
    colours = machine_colours(results)
    for axes, (column, unit) in zip(figure.subplots(1, 3, sharey=True), units.items(), strict=True):
        horizontal_bars(
            axes, table["machine"], table[column].fillna(0), None,
            [colours[machine] for machine in table["machine"]], [""] * len(table),
            fmt=lambda score: f"{score:,.0f}" if score else "no score",
        )  # fmt: skip
        axes.set_title(unit, fontsize=11)
        axes.set_xlabel("score")
    return figure
