"""The charts say what the rows say, and the notebook runs on whatever lies under results/."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import result_files as files
from matplotlib.image import imread
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from harness.columns import COLUMNS
from harness.results import append_row, read_rows
from reporting import charts, drawing
from reporting.experiments import find_experiments
from reporting.tables import load_results

ROOT = Path(__file__).parent.parent
MACHINE = "Apple_M3_Pro_18GB_14_GPU_Cores"
CIFAR100 = "pytorch_cv_resnet50_cifar100"
LLM = "llamacpp_2_7b_chat_q4_0_gguf_tokens_per_second"
# Those that the made-up files of the tests are of.
FOLDERS = {f"results_{folder}" for folder, *_ in files.TRAINING} | {"results_llama2"}
WRITTEN = [e for e in find_experiments() if e.results_folder in FOLDERS]
NAMES = [
    *(experiment.chart for experiment in WRITTEN),
    *("overview", "samples_per_second", "geekbench_ml"),
]


def write(results_dir, machine, size, seconds, **changed):
    path = files.training_path(results_dir, "pytorch_cv", machine, files.TRAINING[0][1])
    row = files.training_row(machine, size, seconds, 50_000) | changed
    append_row(path, row, COLUMNS)


def time_chart(results_dir):
    return chart_of(load_results(results_dir), CIFAR100)


def chart_of(results, chart):
    return charts.of_experiment(results, results.experiments[chart])


def bars(axes):
    return [bar for bar in axes.patches if bar.get_height()]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# One chart


def test_a_bar_per_machine_and_batch_size(tmp_path):
    for machine, factor in (("A", 1), ("B", 2)):
        for size in (16, 32):
            write(tmp_path, machine, size, 100 * factor + size)
    figure = time_chart(tmp_path)
    (axes,) = figure.axes
    assert [bar.get_height() for bar in bars(axes)] == [116, 216, 132, 232]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "32"]
    assert "lower is better" in figure.get_suptitle()
    assert axes.get_ylabel() == "seconds per epoch" and legend(figure) == ["A", "B"]


@pytest.mark.parametrize(("half_width", "ends"), [(7.0, (93, 107)), (250.0, (0, 350))])
def test_error_bars_are_the_interval_from_zero_on(tmp_path, half_width, ends):
    write(tmp_path, MACHINE, 32, 100.0, avg_time_per_epoch_ci95=half_width)
    (axes,) = time_chart(tmp_path).axes
    (whiskers,) = [c for c in axes.containers if hasattr(c, "has_yerr") and c.has_yerr]
    ((low, high),) = [segment[:, 1] for segment in whiskers.lines[2][0].get_segments()]
    assert (low, high) == ends


def test_a_failed_size_is_a_gap_that_says_why(tmp_path):
    write(tmp_path, MACHINE, 32, 100.0)
    write(tmp_path, MACHINE, 64, 100.0, avg_time_per_epoch=None, status="out_of_memory")
    write(tmp_path, MACHINE, 128, 100.0, avg_time_per_epoch=None, status="killed")
    (axes,) = time_chart(tmp_path).axes
    assert len(bars(axes)) == 1
    assert [label.get_text() for label in axes.get_xticklabels()] == ["32", "64", "128"]
    assert "out of memory" in texts(axes) and "killed" in texts(axes)
    assert axes.get_ylim()[0] == 0


def test_only_failures_make_a_chart_too(tmp_path):
    write(tmp_path, MACHINE, 64, 100.0, avg_time_per_epoch=None, status="out_of_memory")
    figure = time_chart(tmp_path)
    drawing.save(figure, tmp_path / "chart.png")
    assert "out of memory" in texts(figure.axes[0])


@pytest.mark.parametrize(
    ("changed", "hatch", "said"),
    [
        ({}, None, []),
        ({"extrapolated": True}, "////", ["extrapolated from a short run"]),
        ({"data": "synthetic"}, "...", ["synthetic data"]),
        (
            {"extrapolated": True, "data": "synthetic"},
            "////...",
            ["extrapolated from a short run", "synthetic data"],
        ),
        (
            {"disturbance": "suspended"},
            "xxx",
            ["disturbed while it was measured"],
        ),
    ],
)
def test_hatches_mark_weaker_evidence(tmp_path, changed, hatch, said):
    write(tmp_path, MACHINE, 32, 100.0, **changed)
    figure = time_chart(tmp_path)
    assert (figure.axes[0].patches[0].get_hatch() or None) == hatch
    assert legend(figure)[1:] == said


@pytest.mark.parametrize(("sizes", "said"), [(2, "100\ndisturbed"), (30, "100, disturbed")])
def test_a_bar_of_a_disturbed_run_says_so_beside_its_number(tmp_path, sizes, said):
    write(tmp_path, MACHINE, 1, 100.0, other_load_percent=35.0)
    for size in range(2, sizes + 1):
        write(tmp_path, MACHINE, size, 100.0)
    assert texts(time_chart(tmp_path).axes[0]) == [said, *["100"] * (sizes - 1)]
    write(tmp_path, MACHINE, 1, 90.0)
    assert texts(time_chart(tmp_path).axes[0])[0] == "90"


def test_a_disturbed_run_is_named_in_all_other_charts(tmp_path):
    for machine, load in (("A", 1.0), ("B", 35.0)):
        files.write_machine(tmp_path, machine, 1.0, other_load_percent=load)
        path = tmp_path / f"results_llama2/{machine}_llama-2-7b-chat.Q4_0_results.csv"
        _, rows = read_rows(path)
        path.unlink()
        further = [{**rows[-1], "question": "tg128@d4096"}]
        for row in rows + further:
            append_row(path, row | {"other_load_percent": load}, list(row))
    results = load_results(tmp_path)
    (axes,) = charts.overview(results, "A").axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(names)[1].endswith("(7 experiments, 7 disturbed)")
    waiting = charts.samples_per_second(results).axes[0]
    labels = sorted(label.get_text() for label in waiting.get_yticklabels())
    assert "waited for data" in labels[0]
    assert labels[1].endswith(", disturbed") and "waited" not in labels[1]
    shown = {axes.get_title(): axes for axes in chart_of(results, LLM).axes}
    names = {label.get_text() for label in shown["generation"].get_yticklabels()}
    assert names == {"A", "B, disturbed"}
    curves = shown["llama-bench tg128 by tokens in the cache"]
    (crosses,) = [line for line in curves.lines if line.get_marker() == "x"]
    assert list(crosses.get_xdata()) == [0, 4096]


def test_other_configurations_are_bars_of_their_own(tmp_path):
    write(tmp_path, MACHINE, 32, 100.0)
    write(tmp_path, MACHINE, 32, 50.0, precision="bf16", compile=True)
    write(tmp_path, MACHINE, 32, 70.0, channels_last=True, project_version="0.0.9")
    figure = time_chart(tmp_path)
    label = "Apple M3 Pro 18GB 14 GPU Cores"
    assert legend(figure) == [
        label,
        f"{label}, bf16 compiled",
        f"{label}, channels_last, version 0.0",
    ]
    colours = [bar.get_facecolor() for bar in figure.axes[0].patches]
    assert len(set(colours)) == 3


def test_older_results_have_a_panel_of_their_own(tmp_path):
    write(tmp_path, MACHINE, 32, 100.0)
    files.write_older(tmp_path)
    ours, older = time_chart(tmp_path).axes
    assert len(bars(ours)) == 1 and len(bars(older)) > 30
    assert "2023" in older.get_title() and "failed" in texts(older)
    assert ours.get_ylim() == older.get_ylim()


def test_the_scale_is_logarithmic_where_ranges_need_it(tmp_path):
    write(tmp_path, "A", 32, 100.0)
    write(tmp_path, "B", 32, 10.0)
    assert time_chart(tmp_path).axes[0].get_yscale() == "linear"
    write(tmp_path, "C", 32, 1.0)
    (axes,) = time_chart(tmp_path).axes
    assert axes.get_yscale() == "log" and "log scale" in axes.get_ylabel()


def test_a_machine_has_one_colour_in_all_charts(tmp_path):
    files.write_twelve(tmp_path)
    files.write_geekbench(tmp_path)
    results = load_results(tmp_path)
    colours = drawing.machine_colours(results)
    assert len(set(colours.values())) == 15
    for chart in (CIFAR100, "tensorflow_nlp_imdb"):
        figure = chart_of(results, chart)
        handles = figure.legends[0].legend_handles[:12]
        drawn = dict(zip(legend(figure)[:12], handles, strict=True))
        for machine in files.MACHINES:
            shown = drawn[machine.replace("_", " ")].get_facecolor()
            assert shown[:3] == pytest.approx(colours[machine])


def test_no_bars_overlap(tmp_path):
    files.write_twelve(tmp_path)
    (axes,) = time_chart(tmp_path).axes
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars(axes))
    assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(edges))


def test_tokens_of_questions_and_of_llama_bench(tmp_path):
    files.write_machine(tmp_path, "A", 1.0)
    files.write_machine(tmp_path, "B", 2.0)
    files.write_older(tmp_path, {"C": 1.0})
    figure = chart_of(load_results(tmp_path), LLM)
    shown = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    generation = shown["generation"]
    assert [bar.get_width() for bar in generation.patches] == pytest.approx([24.15, 12.15])
    assert [label.get_text() for label in generation.get_yticklabels()] == ["B", "A"]
    assert {"reading the prompt", "llama-bench tg128", "llama-bench pp512"} < set(shown)
    (older,) = [axes for title, axes in shown.items() if "2023" in title]
    assert older.patches[0].get_width() == pytest.approx(10.1)
    assert "higher is better" in figure.get_suptitle()


def test_where_the_device_waited(tmp_path):
    write(tmp_path, "A", 32, 100.0, input_bound_percent=40.0, compute_samples_per_second=833.0)
    write(tmp_path, "B", 32, 100.0, input_bound_percent=1.0, compute_samples_per_second=505.0)
    write(tmp_path, "B", 64, 200.0)
    noisy = {"samples_per_second_ci95": 150.0, "compute_samples_per_second": 640.0}
    write(tmp_path, "C", 32, 100.0, input_bound_percent=22.0, **noisy)
    (axes,) = charts.samples_per_second(load_results(tmp_path)).axes
    assert sorted(bar.get_width() for bar in axes.patches) == [500, 500, 500, 505, 640, 833]
    labels = sorted(label.get_text() for label in axes.get_yticklabels())
    assert labels == [
        "A\n500 at batch 32, waited for data: 40 % slower",
        "B\n500 at batch 32",
        "C\n500 at batch 32",
    ]


def test_overview_is_relative_to_the_chosen_machine(tmp_path):
    files.write_machine(tmp_path, "A", 1.0)
    files.write_machine(tmp_path, "B", 2.0)
    files.write_older(tmp_path, {"C": 1.0, "D": 3.0})
    results = load_results(tmp_path)
    ours, older = charts.overview(results, "B").axes
    names = [label.get_text() for label in ours.get_yticklabels()]
    assert names == ["B: 1.00 (7 experiments)", "A: 0.50 (7 experiments)"]
    assert ours.get_xlabel() == "speed, B = 1 (log scale)"
    assert "2023" in older.get_title() and older.get_xlabel().startswith("speed, D = 1")


@pytest.mark.parametrize("speed", [1.15, 2.0, 30.0])
def test_overview_has_a_scale_whatever_lies_apart(tmp_path, speed):
    files.write_machine(tmp_path, "A", 1.0)
    files.write_machine(tmp_path, "B", speed)
    figure = charts.overview(load_results(tmp_path), "A")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    ticks = axes.get_xticklabels() + axes.get_xticklabels(minor=True)
    numbers = [t.get_text() for t in ticks if t.get_text() and low <= t.get_position()[0] <= high]
    assert 3 <= len(numbers) <= 12 and "1" in numbers


def test_geekbench_scores(tmp_path):
    files.write_geekbench(tmp_path)
    figure = charts.geekbench_ml(load_results(tmp_path))
    assert [axes.get_title() for axes in figure.axes] == ["CPU", "GPU", "Neural Engine"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [1809, 2356, 1000]
    assert texts(figure.axes[1])[-1] == "no score"


# The notebook


def run_notebook(results_dir, monkeypatch):
    """The notebook as executed on `results_dir`."""
    monkeypatch.setenv("RESULTS_DIR", str(results_dir))
    notebook = nbformat.read(ROOT / "plot_results.ipynb", as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    return NotebookClient(notebook, timeout=120, resources=resources).execute()


def shown_text(notebook) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(str(output.get("data", {}).get("text/markdown", "")) for output in outputs)


def nothing(results_dir):
    pass


def one_machine(results_dir):
    files.write_machine(results_dir, MACHINE, 1.0, fits=64)
    files.write_selfcheck(results_dir, MACHINE, 3.0)


def twelve_machines(results_dir):
    files.write_twelve(results_dir)
    files.write_geekbench(results_dir)


def every_older_format_and_a_torn_file(results_dir):
    files.write_older(results_dir)
    write(results_dir, MACHINE, 32, 100.0)
    path = files.training_path(results_dir, "pytorch_cv", MACHINE, files.TRAINING[0][1])
    path.write_text(path.read_text()[:-9])


@pytest.mark.parametrize(
    "written", [nothing, one_machine, twelve_machines, every_older_format_and_a_torn_file]
)
def test_the_notebook_runs(tmp_path, monkeypatch, written):
    written(tmp_path)
    notebook = run_notebook(tmp_path, monkeypatch)
    names = NAMES if written is not nothing else NAMES[len(WRITTEN) :]
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == sorted(names)
    for path in tmp_path.glob("*.png"):
        assert imread(path).std() > 0.01  # not blank
    torn = written is every_older_format_and_a_torn_file
    assert (f"{MACHINE}_cifar100" in shown_text(notebook)) is torn
    html, _ = HTMLExporter(exclude_input=True).from_notebook_node(notebook)
    assert html.count("<img") == len(names) and "import os" not in html
    assert ("mfu_percent" in html) is (written in (one_machine, twelve_machines))
    for personal in (str(tmp_path), str(ROOT), str(Path.home())):
        assert personal not in html


def test_somebodys_own_matplotlibrc_changes_no_chart(tmp_path):
    """TeX that is not there would end it, fonts that are not there warn at each text."""
    one_machine(tmp_path)
    drawing.save(time_chart(tmp_path), tmp_path / "usual.png")
    style = "text.usetex: True\nfont.family: No Such Font\naxes.facecolor: black\n"
    (tmp_path / "matplotlibrc").write_text(style)
    draw = "import test_charts as t; t.drawing.save(t.time_chart(t.Path.cwd()), t.Path('own.png'))"
    done = subprocess.run(
        [sys.executable, "-c", draw], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "usual.png").read_bytes()


def test_an_empty_experiment_says_so(tmp_path):
    figure = time_chart(tmp_path)
    assert texts(figure.axes[0]) == ["no results yet"]


def test_the_notebook_is_committed_without_outputs():
    notebook = nbformat.read(ROOT / "plot_results.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
