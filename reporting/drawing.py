"""What all charts draw with: colours fixed per machine, bars with whiskers, gaps, hatches."""

import math
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reporting.tables import Results

# A chart looks the same on every machine, whatever somebody's own matplotlibrc says: TeX, fonts.
matplotlib.rcdefaults()

# Twelve colours that stay apart for colour-blind readers (M. Krzywinski's palette,
# https://mk.bcgsc.ca/colorblind/), neighbours in this order unlike each other.
COLOURS = [
    *("#008DF9", "#E20134", "#009F81", "#FFC33B", "#8400CD", "#FF6E3A"),
    *("#00C2F9", "#9F0162", "#00FCCF", "#FF5AAF", "#A40122", "#FFB2FD"),
]
EXTRAPOLATED, SYNTHETIC, DISTURBED = "////", "...", "xxx"
WIDEST = 46  # characters of a name in one line: bars need room beside it
HATCHES = {EXTRAPOLATED: "extrapolated from a short run", SYNTHETIC: "synthetic data"}
HATCHES |= {DISTURBED: "disturbed while it was measured"}


def machine_colours(results: Results) -> dict[str, tuple]:
    """A colour for every machine, the same in all charts; after twelve they repeat, darker."""
    measured = {*results.measurements["machine"], *results.generations["machine"]}
    machines = [*sorted(measured), *sorted(set(results.geekbench["machine"]) - measured)]
    return {
        name: tuple(part * 0.6 ** (i // len(COLOURS)) for part in to_rgb(COLOURS[i % len(COLOURS)]))
        for i, name in enumerate(machines)
    }


def shades(rows: pd.DataFrame, colours: dict[str, tuple]) -> dict[str, tuple]:
    """A colour for every series: its machine's, the lighter the more series the machine has."""
    series = rows[["machine", "series", "protocol"]].drop_duplicates()
    ranks = series.groupby(["machine", "protocol"]).cumcount()
    return {
        name: tuple(1 - (1 - part) * 0.55**rank for part in colours[machine])
        for name, machine, rank in zip(series["series"], series["machine"], ranks, strict=True)
    }


def machine_shades(rows: pd.DataFrame, results: Results) -> list[tuple]:
    """The colour of each row: its machine's, lighter where its configuration is not the default."""
    colours = machine_colours(results)
    return [
        tuple(1 - (1 - part) * (0.55 if changed else 1) for part in colours[machine])
        for machine, changed in zip(rows["machine"], rows["configuration"], strict=True)
    ]


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


def panel_grid(title: str, panels: int, height: float) -> tuple[Figure, list]:
    """A figure with so many axes in two columns, each of `height` inches."""
    lines = math.ceil(panels / 2)
    figure = Figure(figsize=(15, lines * height + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=14)
    return figure, two_columns(figure, panels)


def two_columns(figure, panels: int) -> list:
    """So many axes in a figure, or in a part of one."""
    grid = figure.subplots(math.ceil(panels / 2), min(2, panels), squeeze=False)
    all_axes = list(grid.flat)
    for axes in all_axes[panels:]:
        axes.set_axis_off()
    return all_axes[:panels]


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


def in_lines(name: str) -> str:
    """A long name in as many lines as it needs; one that has lines already keeps them."""
    return name if "\n" in name else textwrap.fill(name, WIDEST)


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
    axes.set_yticks(places, [in_lines(name) for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.18)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def draw_curves(axes, title: str, axis: str, rows: pd.DataFrame, colours: dict) -> None:
    """A line per machine and configuration, with its intervals."""
    for series, points in rows.groupby("series"):
        points = points.sort_values("x")
        axes.errorbar(
            points["x"], points["speed"], whiskers(points["speed"], points["ci95"].fillna(0)),
            marker="o", capsize=2, color=colours[series], label=in_lines(series),
        )  # fmt: skip
    others = rows[rows["disturbed"] == True]  # noqa: E712
    if len(others):
        axes.plot(others["x"], others["speed"], "kx", markersize=10, zorder=3, label="disturbed")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(axis)
    axes.set_ylabel("tokens per second")
    axes.set_xticks(sorted(rows["x"].unique()))
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def whiskers(values, half_widths) -> list[list[float]]:
    """Lengths below and above: nothing takes less than no time, however wide the interval is."""
    return np.stack([np.minimum(half_widths, values), half_widths]).tolist()


def marked(text: str, row, between: str = ", ") -> str:
    """A bar's name or number, with a word on a run that others disturbed."""
    return f"{text}{between}disturbed" if row["disturbed"] == True else text  # noqa: E712


def hatch(row) -> str:
    marks = EXTRAPOLATED if row.get("extrapolated") == True else ""  # noqa: E712
    marks += SYNTHETIC if row["data"] == "synthetic" else ""
    return marks + (DISTURBED if row["disturbed"] == True else "")  # noqa: E712


def hatch_handles(rows: pd.DataFrame) -> list[Patch]:
    """Legend entries of the hatches that are in use."""
    used = "".join(hatch(row) for _, row in rows.iterrows())
    return [
        Patch(facecolor="white", edgecolor="black", hatch=marks, label=meaning)
        for marks, meaning in HATCHES.items()
        if marks in used
    ]
