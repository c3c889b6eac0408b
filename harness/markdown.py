"""llama-bench's Markdown table, for pasting into an issue beside llama-bench's own.

Columns, widths and units are those of its markdown_printer (tools/llama-bench/llama-bench.cpp).
"""

import statistics

from harness.questions import SPEED_OF, figure_parts

BACKENDS = {"cpu": "CPU", "cuda": "CUDA", "metal": "MTL", "vulkan": "Vulkan"}


def llama_bench_table(rows: list[dict]) -> str:
    """A line for each of llama-bench's figures among the good rows: mean and standard deviation."""
    good = [row for row in rows if row["status"] == "ok" and figure_parts(row["question"])]
    if not good:
        return "no figure of llama-bench was measured"
    lines = [
        [*model_cells(good[0]), test_name(figure), speed(good, figure)]
        for figure in dict.fromkeys(row["question"] for row in good)
    ]
    where = "threads" if good[0]["device"] == "cpu" else "ngl"
    heads = ["model", "size", "params", "backend", where, "test", "t/s"]
    widths = [-30, 10, 10, -10, 7 if where == "threads" else 3, 15, 20]
    rule = [f"{'-' * (abs(w) - 1)}{'-' if w < 0 else ':'}" for w in widths]
    return "\n".join(line(cells, widths) for cells in [heads, rule, *lines])


def line(cells: list[str], widths: list[int]) -> str:
    padded = [
        cell.ljust(-width) if width < 0 else cell.rjust(width)
        for cell, width in zip(cells, widths, strict=True)
    ]
    return f"| {' | '.join(padded)} |"


def model_cells(row: dict) -> list[str]:
    size, parameters = row["weights_gb"] * 1e9, row["parameters"]
    kind = row["device"].partition(" ")[0]
    return [
        row["description"],
        f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB",
        f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M",
        BACKENDS.get(kind, kind),
        str(row["n_threads"] if kind == "cpu" else row["n_gpu_layers"]),
    ]


def test_name(figure: str) -> str:
    """Such as `tg128 @ d4096`; `@ p4`, which llama-bench has not, is so many sequences at once."""
    return figure.replace("@", " @ ")


def speed(rows: list[dict], figure: str) -> str:
    column = SPEED_OF[figure_parts(figure)[0]]
    values = [row[column] for row in rows if row["question"] == figure]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {spread:.2f}"
