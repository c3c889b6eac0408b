"""The charts: each function makes one figure of what reporting.tables has read."""

import itertools
import math
import re
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from harness.experiment import Experiment
from harness.questions import figure_parts
from harness.terminal import input_bound
from reporting.drawing import (
    draw_curves,
    draw_gap,
    empty,
    hatch,
    hatch_handles,
    horizontal_bars,
    machine_colours,
    machine_shades,
    marked,
    panel_grid,
    save,
    shades,
    three_digits,
    two_columns,
    whiskers,
)
from reporting.scores import score_bars
from reporting.speeds import is_good, measurements, relative_speeds, speeds
from reporting.tables import OLDER, OURS, Results

PROTOCOLS = {OURS: "", OLDER: f"published results of {OLDER}, measured another way"}
LABELLED_BARS = 100  # more bars than these carry no numbers


def of_experiment(results: Results, experiment: Experiment) -> Figure:
    """The chart of an experiment: bars of its speeds by what it varies."""
    return (token_bars if experiment.generations else speed_bars)(results, experiment)


def draw_all(results: Results, folder: Path) -> list[str]:
    """Every chart that there are results for, as PNG files; returns their paths."""
    measured = {*results.measurements["experiment"], *results.generations["experiment"]}
    figures = {"overview": overview(results), "samples_per_second": samples_per_second(results)}
    for chart, experiment in results.experiments.items():
        if chart in measured:
            figures[chart] = of_experiment(results, experiment)
        if chart in measured and experiment.whole_set:
            figures[f"{chart}_score"] = score_bars(results, experiment)
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


# One experiment


def speed_bars(results: Results, experiment: Experiment) -> Figure:
    """Size against speed, a bar per machine and configuration.

    Older results, further measures, and each value of what else is varied have their own panels.
    """
    main = experiment.speeds[0]
    title = f"{experiment.title}: {main.title} ({main.better})"
    rows = speeds(results)
    rows = rows[rows["experiment"] == experiment.chart]
    if rows.empty:
        return empty(title)
    rows = with_series(with_panels(rows, experiment))
    colours = shades(rows, machine_colours(results))
    panels = list(dict.fromkeys(rows.sort_values("order", kind="stable")["panel"]))
    columns = 1 if len(panels) < 4 else 2
    lines = math.ceil(len(panels) / columns)
    legend_height = 0.22 * math.ceil(len(colours) / 3)
    figure = Figure(figsize=(15, 4.6 * lines + legend_height + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=14)
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        draw_panel(axes, rows[rows["panel"] == panel], experiment, colours)
        axes.set_title(panel, fontsize=11)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    share_scales(grid[: len(panels)], panels, rows)
    handles = [Patch(facecolor=c, edgecolor="black", label=n) for n, c in colours.items()]
    handles += hatch_handles(rows)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def with_panels(rows: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Adds `size`, what lies along the axis; `panel`, a title; `order` of the panels; `names`, what
    else tells two bars apart."""
    place = experiment.varied.index(experiment.along)
    titles, names, order = [], [], []
    measures = [speed.name for speed in experiment.speeds]
    for row in rows.to_dict("records"):
        values = list(zip(experiment.varied, row["varied"], strict=True))
        del values[place]
        apart = [varied.named(value) for varied, value in values if not varied.in_label]
        titles.append(", ".join(filter(None, [*apart, row["measure"], PROTOCOLS[row["protocol"]]])))
        names.append([varied.named(value) for varied, value in values if varied.in_label])
        rank = [list(PROTOCOLS).index(row["protocol"]), measures.index(row["measure"])]
        order.append((*rank, [str(value) for _, value in values]))
    sizes = [values[place] for values in rows["varied"]]
    return rows.assign(size=sizes, panel=titles, names=names, order=order)


def with_series(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds `series`, a bar's name: the label, and the version of a row that another one made."""
    names = []
    for row in rows.to_dict("records"):
        other = row["protocol"] == OURS and not row["current"]
        version = [f"version {row['project_version']}"] if other else []
        names.append(", ".join([row["label"], *row.get("names", []), *version]))
    # 4 threads before 16.
    padded = [re.sub(r"\d+", lambda number: number[0].zfill(9), name) for name in names]
    rows = rows.assign(series=names, padded=padded).sort_values(["machine", "padded"])
    return rows.drop(columns="padded")


def draw_panel(axes, rows: pd.DataFrame, experiment: Experiment, colours: dict) -> None:
    """Groups of bars, one group per size; a failed one is a gap that says why."""
    along = experiment.along
    sizes = sorted(rows["size"].unique(), key=along.choices.index if along.choices else None)
    width = 0.86 / rows["size"].value_counts().max()
    crowded = len(rows) > 24
    numbers = {"fontsize": 6.5, "rotation": 90} if crowded else {"fontsize": 9}
    between = ", " if crowded else "\n"
    for place, size in enumerate(sizes):
        # The rows are sorted as the legend is.
        group = rows[rows["size"] == size].assign(good=is_good).to_dict("records")
        for number, row in enumerate(group):
            x = place + (number - (len(group) - 1) / 2) * width
            if not row["good"]:
                draw_gap(axes, x, row, colours[row["series"]])
                continue
            drawn = draw_bar(axes, x, 0.94 * width, row, colours[row["series"]])
            if len(rows) <= LABELLED_BARS:
                text = marked(three_digits(row["speed"]), row, between)
                axes.bar_label(drawn, [text], padding=2, **numbers)
    if along.choices:
        axes.set_xticks(range(len(sizes)), sizes, rotation=30, ha="right", fontsize=9)
    else:
        axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.set_xlabel(along.axis)
    measure = rows["measure"].iloc[0]
    axes.set_ylabel(next(s.axis for s in experiment.speeds if s.name == measure))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.margins(y=0.2)


def share_scales(all_axes, panels: list[str], rows: pd.DataFrame) -> None:
    """One scale for the panels of one measure, logarithmic where the numbers lie far apart."""
    of_panel = rows.drop_duplicates("panel").set_index("panel")["measure"]
    for measure in of_panel.unique():
        group = [a for a, p in zip(all_axes, panels, strict=True) if of_panel[p] == measure]
        values = rows.loc[is_good(rows) & (rows["measure"] == measure), "speed"]
        if len(values) and values.max() > 30 * values.min():
            for axes in group:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:,g}")
                axes.set_ylabel(f"{axes.get_ylabel()} (log scale)")
        for axes in group[1:]:
            axes.sharey(group[0])
            axes.autoscale(axis="y")


def draw_bar(axes, x: float, width: float, row: dict, colour: tuple):
    speed, error = row["speed"], row["ci95"]
    return axes.bar(
        x, speed, width, color=[colour], hatch=hatch(row),
        yerr=whiskers([speed], [error]) if error > 0 else None,
        error_kw={"elinewidth": 1, "capsize": 2}, edgecolor="black", linewidth=0.5,
    )  # fmt: skip


def token_bars(results: Results, experiment: Experiment) -> Figure:
    """Generation and prompt processing of an LLM, and llama-bench's figures where there are."""
    title = f"{experiment.title}: tokens per second (higher is better)"
    rates = speeds(results)
    rates = with_series(rates[rates["experiment"] == experiment.chart])
    if rates.empty:
        return empty(title)
    measures = {
        "generation": "generation", "prompt": "reading the prompt",
        "tg128": "llama-bench tg128", "pp512": "llama-bench pp512",
    }  # fmt: skip
    ours = rates[rates["protocol"] == OURS]
    older = rates[rates["protocol"] == OLDER]
    panels = [(name, ours[ours["measure"] == measure]) for measure, name in measures.items()]
    panels.append((f"{PROTOCOLS[OLDER]}\n(tokens estimated as characters / 4)", older))
    panels = [(name, rows) for name, rows in panels if len(rows)]
    curves = [panel for panel in token_curves(ours) if len(panel[-1])]
    most = max(len(rows) for _, rows in panels)
    heights = [math.ceil(len(panels) / 2) * (1.3 + 0.32 * most)]
    heights += [math.ceil(len(curves) / 2) * 3.6] if curves else []
    figure = Figure(figsize=(15, sum(heights) + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=14)
    # Two parts, because the names of bars need a wide margin.
    parts = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    if curves:
        for axes, curve in zip(two_columns(parts[1], len(curves)), curves, strict=True):
            draw_curves(axes, *curve, shades(ours, machine_colours(results)))
    for axes, (name, rows) in zip(two_columns(parts[0], len(panels)), panels, strict=True):
        rows = rows.sort_values("speed", ascending=False)
        names = [marked(row["series"], row) for _, row in rows.iterrows()]
        horizontal_bars(
            axes, names, rows["speed"], rows["ci95"].fillna(0),
            machine_shades(rows, results), [hatch(row) for _, row in rows.iterrows()],
        )  # fmt: skip
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("tokens per second")
    if handles := hatch_handles(rates):
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def token_curves(rows: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Title, axis and rows (with `x`) of llama-bench's figures at depth, and in parallel.

    A machine that was measured at no depth but 0, or for no more than one user, is not in them.
    """
    parts = [figure_parts(measure) or ("", 0, 1) for measure in rows["measure"]]
    rows = rows.assign(
        figure=[figure for figure, _, _ in parts],
        depth=[depth for _, depth, _ in parts],
        parallel=[count for _, _, count in parts],
    )
    curves = []
    for column, other, usual, axis in (
        ("depth", "parallel", 0, "tokens in the cache"),
        ("parallel", "depth", 1, "users at once"),
    ):
        for figure in ("tg128", "pp512"):
            of_figure = rows[(rows["figure"] == figure) & (rows[other] == 1 - usual)]
            measured = of_figure.loc[of_figure[column] != usual, "series"]
            chosen = of_figure[of_figure["series"].isin(measured)]
            chosen = chosen.assign(x=chosen[column])
            whose = ", of all together" if column == "parallel" else ""
            curves.append((f"llama-bench {figure} by {axis}{whose}", axis, chosen))
    return curves


# Where the device waited


def samples_per_second(results: Results) -> Figure:
    """End to end beside the device alone, at each machine's fastest size."""
    title = "Samples per second: end to end (bar) and the device alone (outline); higher is better"
    rows = measurements(results)
    rows = rows[is_good(rows) & rows["compute_samples_per_second"].notna()]
    rows = rows.sort_values("samples_per_second", ascending=False)
    rows = with_series(rows.drop_duplicates(["experiment", "label"]))
    panels = [e for e in results.experiments.values() if (rows["experiment"] == e.chart).any()]
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
    text = f"{row['series']}\n{three_digits(row['samples_per_second'])} at {row['test']}"
    text = marked(text, row)
    if input_bound(row):
        text += f", waited for data: {row['input_bound_percent']:.0f} % slower"
    return text


# All experiments at once


def overview(results: Results, reference: str | None = None) -> Figure:
    """Speed of each machine relative to a reference machine, over all experiments."""
    title = "Speed relative to a reference machine, over all experiments (higher is better)"
    relative = relative_speeds(results, reference)
    if relative.empty:
        return empty(title)
    drawn = [e for e in results.experiments.values() if (relative["experiment"] == e.chart).any()]
    markers = {e.chart: (e.title, m) for e, m in zip(drawn, itertools.cycle(MARKERS))}
    panels = [protocol for protocol in PROTOCOLS if (relative["protocol"] == protocol).any()]
    counts = [relative.loc[relative["protocol"] == p, "machine"].nunique() for p in panels]
    figure = Figure(figsize=(15, sum(1.4 + 0.34 * n for n in counts) + 1), layout="constrained")
    figure.suptitle(title, fontsize=14)
    ratios = [1.4 + 0.34 * count for count in counts]
    all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=ratios)[:, 0]
    for axes, protocol in zip(all_axes, panels, strict=True):
        draw_overview(
            axes, relative[relative["protocol"] == protocol], machine_colours(results), markers
        )
        axes.set_title(PROTOCOLS[protocol], fontsize=11)
    handles = [
        axes.plot([], [], marker, color="white", markeredgecolor="black", label=title)[0]
        for title, marker in markers.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    return figure


MARKERS = ["o", "s", "^", "D", "v", "P", "*", "X", "<", ">", "p", "h", "8", "d", "H", "$+$"]


def draw_overview(axes, relative: pd.DataFrame, colours: dict, markers: dict) -> None:
    """A bar from 1 to the geometric mean over experiments, and a mark per experiment."""
    means = relative.groupby(["machine", "label"]).agg(
        mean=("log_speed", "mean"), count=("log_speed", "count"), disturbed=("disturbed", "sum")
    )
    means = means.sort_values("mean", ascending=False).reset_index()
    names = [
        f"{label}: {math.exp(mean):.2f} ({count} experiment{'s' * (count > 1)}"
        f"{f', {disturbed} disturbed' if disturbed else ''})"
        for _, label, mean, count, disturbed in means.itertuples(index=False)
    ]
    values = [math.exp(mean) - 1 for mean in means["mean"]]
    axes.set_xscale("log")
    axes.barh(
        range(len(names)), values, 0.8, left=1, edgecolor="black", linewidth=0.5,
        color=[colours[machine] for machine in means["machine"]],
    )  # fmt: skip
    places = {machine: place for place, machine in enumerate(means["machine"])}
    for chart, (_, marker) in markers.items():
        rows = relative[relative["experiment"] == chart]
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
    axes.set_xlabel(f"speed, {relative['reference'].iloc[0].replace('_', ' ')} = 1 (log scale)")


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
