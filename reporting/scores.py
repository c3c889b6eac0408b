"""Scores of suites: the geometric mean over a whole set, such as all networks, and nothing less.

Such a score stands beside Geekbench ML's closed one and is never mixed with it: other networks,
another unit.
"""

import math

import pandas as pd
from matplotlib.figure import Figure

from harness.experiment import Experiment
from reporting.drawing import (
    empty,
    hatch,
    hatch_handles,
    horizontal_bars,
    machine_shades,
    marked,
    panel_grid,
)
from reporting.speeds import is_good, speeds
from reporting.tables import OURS, Results, pretty


def scores(results: Results, experiment: Experiment) -> pd.DataFrame:
    """One row per machine and all else that is varied, where the whole set was measured.

    Returns:
        Columns machine, series (how a bar is called), panel, score, configuration, data,
        disturbed (whether others disturbed a run that is in it).
    """
    rows = speeds(results)
    rows = rows[(rows["experiment"] == experiment.chart) & (rows["protocol"] == OURS)]
    rows = rows[is_good(rows) & rows["main"].astype(bool)]
    place = experiment.varied.index(experiment.along)
    found = []
    for _, group in rows.groupby(
        [
            rows["machine"],
            rows["settings"].map(str),
            rows["varied"].map(lambda v: without(v, place)),
        ]
    ):
        # A network that has run in two ways counts once, with its newest undisturbed number.
        group = group.sort_values(["disturbed", "started_at"], ascending=[False, True])
        member = group["varied"].map(lambda values: values[place])
        group = group[~member.duplicated(keep="last")]
        if set(member) != set(experiment.along.choices):
            continue
        first = group.iloc[0]
        values = list(zip(experiment.varied, first["varied"], strict=True))
        del values[place]
        names = [varied.named(value) for varied, value in values if varied.in_label]
        remarks = sorted({*group["configuration"]} - {""})
        found.append(
            {
                "machine": first["machine"],
                "series": ", ".join([pretty(first["machine"]), *names, *remarks]),
                "panel": ", ".join(v.named(value) for v, value in values if not v.in_label),
                "score": math.exp(group["speed"].map(math.log).mean()),
                "configuration": first["configuration"],
                "data": first["data"],
                "disturbed": bool(group["disturbed"].any()),
            }
        )
    return pd.DataFrame(
        found,
        columns=["machine", "series", "panel", "score", "configuration", "data", "disturbed"],
    )


def without(values: tuple, place: int) -> tuple:
    return (*values[:place], *values[place + 1 :])


def score_bars(results: Results, experiment: Experiment) -> Figure:
    """The scores of a suite, a bar per machine and unit."""
    speed, count = experiment.speeds[0], len(experiment.along.choices)
    title = (
        f"{experiment.title}: {speed.axis}, "
        f"geometric mean over all {count} {experiment.along.axis}s ({speed.better})"
    )
    table = scores(results, experiment)
    if table.empty:
        return empty(title)
    panels = sorted(table["panel"].unique())
    figure, all_axes = panel_grid(title, len(panels), 1.3 + 0.36 * len(table) / len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        rows = table[table["panel"] == panel].sort_values("score", ascending=False)
        names = [marked(row["series"], row) for _, row in rows.iterrows()]
        horizontal_bars(
            axes, names, rows["score"], None, machine_shades(rows, results),
            [hatch(row) for _, row in rows.iterrows()],
        )  # fmt: skip
        axes.set_title(panel, fontsize=11)
        axes.set_xlabel(speed.axis)
    if handles := hatch_handles(table):
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure
