"""Two machines compared: ratios, their intervals, and what must not be compared."""

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import result_files as files

import compare_results
from harness.columns import COLUMNS
from harness.results import append_row

ROOT = Path(__file__).parent.parent


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Runs compare_results.py on `tmp_path`; returns exit code, standard output and errors."""

    def run(*arguments):
        command = ["compare_results.py", *arguments, f"--results_dir={tmp_path}"]
        monkeypatch.setattr(sys, "argv", command)
        try:
            compare_results.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def write(results_dir, machine, seconds, size=32, **changed):
    row = files.training_row(machine, size, seconds, 50_000, **changed)
    path = files.training_path(results_dir, "pytorch_cv", machine, files.TRAINING[0][1])
    append_row(path, row, COLUMNS)


def rows_of(output):
    return list(csv.DictReader(io.StringIO(output)))


def test_as_a_user_runs_it(tmp_path):
    write(tmp_path, "Fast", 50.0)
    write(tmp_path, "Slow", 100.0)
    command = [sys.executable, ROOT / "compare_results.py", "Fast", "Slow"]
    done = subprocess.run(
        [*command, f"--results_dir={tmp_path}"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "2.00" in done.stdout and "first is faster" in done.stdout


def test_ratio_is_the_speed_of_the_first_over_the_second(tmp_path, compare):
    files.write_machine(tmp_path, "A", 1.0)
    files.write_machine(tmp_path, "B", 2.0)
    code, out, _ = compare("B", "A", "--format=csv")
    rows = rows_of(out)
    assert code == 0 and len({row["experiment"] for row in rows}) == 8
    for row in rows:
        assert float(row["ratio"]) == pytest.approx(2, rel=0.02)
        assert float(row["low"]) < float(row["ratio"]) < float(row["high"])
    assert rows[-1]["experiment"] == "all experiments"
    _, out, _ = compare("A", "B", "--format=csv")
    assert float(rows_of(out)[0]["ratio"]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ci95", "said"),
    [(2.0, "second is faster"), (10.0, "no significant difference"), (None, "no interval")],
)
def test_verdict(tmp_path, compare, ci95, said):
    write(tmp_path, "A", 105.0, avg_time_per_epoch_ci95=ci95)
    write(tmp_path, "B", 100.0, avg_time_per_epoch_ci95=ci95)
    rows = rows_of(compare("A", "B", "--format=csv")[1])
    assert {row["verdict"] for row in rows} == {said}


def test_the_interval_of_a_ratio_holds_the_truth_in_95_of_100():
    draw = np.random.default_rng(1)
    held = 0
    for above, below in zip(draw.normal(200, 8, 4000), draw.normal(100, 5, 4000), strict=True):
        _, low, high = compare_results.ratio_ci95(above, 1.96 * 8, below, 1.96 * 5)
        held += low < 2 < high
    assert 0.94 < held / 4000 < 0.96


def test_a_denominator_that_may_be_nothing_has_no_upper_limit():
    assert compare_results.ratio_ci95(10.0, 1.0, 1.0, 1.5) == (10.0, 0.0, math.inf)


def test_geometric_mean_of_opposite_ratios_is_one():
    rows = [
        {"ratio": 2.0, "low": 1.8, "high": 2.2, "differs": ""},
        {"ratio": 0.5, "low": 0.45, "high": 0.55, "differs": ""},
    ]
    mean = compare_results.geometric_mean(rows)
    # Two equal log half-widths h add up to h * sqrt(2) / 2.
    assert mean["ratio"] == pytest.approx(1)
    assert math.log(mean["high"]) == pytest.approx(math.log(1.1) / 2**0.5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"precision": "bf16"}, "precision: fp32 / bf16"),
        ({"compile": True}, "compile: none / True"),
        ({"channels_last": True}, "channels_last"),
        ({"data": "synthetic"}, "data: real / synthetic"),
        ({"framework": "torch 3.0.1"}, "framework: torch 2 / torch 3"),
        ({"project_version": "0.0.9"}, "project_version: 0.2 / 0.0"),
    ],
)
def test_what_differs_is_named_and_refused_unless_loose(tmp_path, compare, changed, said):
    write(tmp_path, "A", 100.0)
    write(tmp_path, "B", 50.0, **changed)
    code, out, errors = compare("A", "B")
    assert code == 1 and said in errors and not out
    code, out, errors = compare("A", "B", "--loose")
    assert code == 0 and said in out and "0.500" in out


def test_minor_versions_and_extrapolation_do_not_matter(tmp_path, compare):
    write(tmp_path, "A", 100.0, framework="torch 2.15.0+cpu")
    write(tmp_path, "B", 50.0, framework="torch 2.14.1", extrapolated=True)
    assert compare("A", "B")[0] == 0


def test_equal_configurations_are_found_among_others(tmp_path, compare):
    write(tmp_path, "A", 100.0)
    write(tmp_path, "A", 40.0, precision="bf16")
    write(tmp_path, "B", 50.0, data="synthetic")
    write(tmp_path, "B", 20.0, precision="bf16")
    write(tmp_path, "B", 25.0)
    rows = rows_of(compare("A", "B", "--format=csv")[1])
    measured = [row for row in rows if row["test"] == "batch 32"]
    assert [row["configuration"] for row in measured] == ["", "bf16"]
    assert [float(row["ratio"]) for row in measured] == [0.25, 0.5]


def test_older_results_are_compared_with_each_other_only(tmp_path, compare):
    files.write_older(tmp_path, {"Old_A": 1.0, "Old_B": 2.0})
    files.write_machine(tmp_path, "New", 2.0)
    code, out, _ = compare("Old_B", "Old_A", "--format=csv")
    assert code == 0
    assert {row["verdict"] for row in rows_of(out)} >= {"no interval"}
    code, _, errors = compare("New", "Old_A")
    assert code == 1 and "protocol: ours / 2023" in errors


@pytest.mark.parametrize(
    ("of_a", "of_b", "said"),
    [(40.0, 1.0, "first"), (1.0, 40.0, "second"), (40.0, 40.0, "first and second")],
)
def test_a_disturbed_run_is_marked_where_there_is_no_other(tmp_path, compare, of_a, of_b, said):
    write(tmp_path, "A", 105.0, other_load_percent=of_a)
    write(tmp_path, "B", 100.0, other_load_percent=of_b)
    single, *means = rows_of(compare("A", "B", "--format=csv")[1])
    assert single["disturbed"] == said and {mean["disturbed"] for mean in means} == {"some rows"}
    for machine in "AB":
        write(tmp_path, machine, 50.0)
    rows = rows_of(compare("A", "B", "--format=csv")[1])
    assert "disturbed" not in rows[0] and float(rows[0]["first"]) == 50


def test_prices(tmp_path, compare):
    write(tmp_path, "A", 50.0)
    write(tmp_path, "B", 100.0)
    row = rows_of(compare("A", "B", "--prices", "4000, 1000", "--format=csv")[1])[0]
    assert float(row["speed_per_price_ratio"]) == pytest.approx(2 * 1000 / 4000)
    for wrong in ("4000", "a,b", "0,1", "1,2,3", "-1,2"):
        code, _, errors = compare("A", "B", f"--prices={wrong}")
        assert code == 2 and "--prices" in errors


def test_markdown_and_json(tmp_path, compare):
    write(tmp_path, "A", 50.0, avg_time_per_epoch_ci95=None)
    write(tmp_path, "B", 100.0)
    _, out, _ = compare("A", "B", "--format=json")
    report = json.loads(out)
    assert report["first"] == "A" and report["comparisons"][0]["ratio"] == pytest.approx(2)
    assert report["comparisons"][0]["low"] is None
    _, out, _ = compare("A", "B", "--format=markdown")
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1


def test_list(tmp_path, compare):
    files.write_machine(tmp_path, "New", 2.0)
    files.write_older(tmp_path, {"Tesla V100": 1.0})
    code, out, _ = compare("--list")
    assert code == 0
    new, old = out.splitlines()
    assert new.startswith("New: ") and "7 experiments" in new
    assert old.startswith("Tesla_V100: ") and old.endswith("(2023)")


def test_an_unknown_machine_is_one_line_with_the_nearest_names(tmp_path, compare):
    write(tmp_path, "Apple_M3_Pro_18GB_14_GPU_Cores", 50.0)
    write(tmp_path, "NVIDIA_TITAN_RTX_24GB", 100.0)
    code, out, errors = compare("Apple_M3_Pro", "NVIDIA_TITAN_RTX_24GB")
    assert code == 1 and not out and len(errors.splitlines()) == 1
    assert "Apple_M3_Pro_18GB_14_GPU_Cores" in errors
    # Upper and lower case, spaces and underscores are the same.
    assert compare("apple m3 pro 18gb 14 gpu cores", "nvidia_titan_rtx_24gb")[0] == 0


@pytest.mark.parametrize(
    ("machines", "code", "said"),
    [((), 2, "give two machines"), (("A",), 2, "give two machines"), (("A", "A"), 2, "both")],
)
def test_bad_usage(tmp_path, compare, machines, code, said):
    write(tmp_path, "A", 50.0)
    got, _, errors = compare(*machines)
    assert got == code and said in errors


def test_no_results_and_a_torn_file_are_said(tmp_path, compare):
    code, _, errors = compare("A", "B")
    assert code == 1 and "no results there" in errors
    write(tmp_path, "A", 50.0)
    write(tmp_path, "B", 50.0)
    write(tmp_path, "C", 50.0)
    path = files.training_path(tmp_path, "pytorch_cv", "C", files.TRAINING[0][1])
    path.write_text(path.read_text()[:-9])
    code, _, errors = compare("A", "B")
    assert code == 0 and "skipped: " in errors and path.name in errors


def test_help_imports_no_pandas():
    command = [sys.executable, "-X", "importtime", ROOT / "compare_results.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "| pandas" not in done.stderr
