"""One page for all machines: a single file that works offline and from any static host.

    python -m reporting.page results

Charts are Vega-Lite's, whose JavaScript the package vl-convert-python carries along, so that
nothing is fetched when the page opens: it draws intervals, logarithmic scales and tooltips, and its
text marks never run what a name may hold. Data travels compressed inside the page, each text once.
"""

import base64
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from harness import PROJECT_VERSION
from harness.arguments import CommandLine, path_name
from harness.process import UserError
from harness.startup import one_line_errors
from reporting.speeds import speeds
from reporting.tables import Results, load_results

STATIC = Path(__file__).parent / "static"
LONGEST = 200  # letters of a text: more than any honest one has
TEXTS = [
    *("machine", "configuration", "test", "unit", "axis", "precision", "protocol", "data"),
    *("status", "framework", "project_version", "started_at", "source"),
]


def write_page(results: Results, results_dir: Path) -> Path:
    """Write `index.html` into the results folder; returns its path.

    Raises:
        UserError: it cannot be written there.
    """
    import vl_convert

    path = results_dir / "index.html"
    parts = {
        "BUNDLE": vl_convert.javascript_bundle(),
        "STYLE": (STATIC / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (STATIC / "page.js").read_text(encoding="utf-8"),
        "DATA": pack(page_data(results, results_dir)),
    }
    page = (STATIC / "page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"/*{name}*/", text)
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from None
    return path


def page_data(results: Results, results_dir: Path) -> dict:
    """All that the page shows: experiments, their numbers by column, prices."""
    rows = with_page_columns(speeds(results), results, results_dir)
    described = [results.experiments[chart] for chart in rows["experiment"].unique()]
    places = {experiment.chart: number for number, experiment in enumerate(described)}
    return {
        "written": datetime.now(UTC).strftime("%Y-%m-%d"),
        "version": PROJECT_VERSION,
        "experiments": [{"title": e.title, "backend": e.backend} for e in described],
        "columns": {
            "experiment": [places[chart] for chart in rows["experiment"]],
            "higher": [int(higher) for higher in rows["higher_is_better"]],
            "extrapolated": [int(flag == True) for flag in rows["extrapolated"]],  # noqa: E712
            "disturbed": [int(flag == True) for flag in rows["disturbed"]],  # noqa: E712
            "speed": numbers(rows["speed"]),
            "ci95": numbers(rows["ci95"]),
        },
        "texts": {name: coded(rows[name]) for name in TEXTS},
        "prices": results.prices,
    }


def with_page_columns(rows: pd.DataFrame, results: Results, results_dir: Path) -> pd.DataFrame:
    axes = {
        (chart, speed.name): speed.axis
        for chart, experiment in results.experiments.items()
        for speed in experiment.speeds
    }
    keys = zip(rows["experiment"], rows["measure"], rows["unit"], strict=True)
    return rows.assign(
        axis=[axes.get((chart, measure), unit) for chart, measure, unit in keys],
        precision=[settings.get("precision", "") for settings in rows["settings"]],
        # The page must not carry this machine's paths.
        source=[Path(path).relative_to(results_dir).as_posix() for path in rows["source"]],
    )


def numbers(values: pd.Series) -> list[float | None]:
    """With six significant digits; None where unknown."""
    return [None if value != value else float(f"{value:.6g}") for value in values.astype(float)]


def coded(values: pd.Series) -> dict:
    """Each text once, and its number for every row."""
    texts = values.astype(object).fillna("").astype(str).str.slice(0, LONGEST)
    codes, texts = pd.factorize(texts)
    return {"texts": texts.tolist(), "codes": codes.tolist()}


def pack(data: dict) -> str:
    """JSON, compressed, as text that cannot end the element that it stands in."""
    text = json.dumps(data, allow_nan=False)  # a browser reads neither NaN nor Infinity
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("results_dir", nargs="?", type=path_name, default=Path("results"))
    results_dir = parser.parse_args().results_dir
    if not results_dir.is_dir():
        parser.error(f"there is no folder {results_dir}")
    with one_line_errors([], results_dir):
        results = load_results(results_dir)
        for problem in results.problems:
            print(f"skipped: {problem}")
        print(f"Page: {write_page(results, results_dir)}")


if __name__ == "__main__":
    main()
