"""Tabular experiments: the airline table, repeated fits, and both scripts on few rows.

The libraries run in fresh processes, because here torch's OpenMP is loaded already: two crash on a
Mac (github.com/dmlc/xgboost/issues/11500).
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

import fake_nvml
import numpy as np
import pandas as pd
import pytest
import tabular_processes
from fake_nvml import Card
from loopback import serve

import harness.cores
import harness.data
import harness.nvidia
import sklearn_test_tabular
import utils
from harness import airline, fits
from harness.arguments import names_of
from harness.device import Device
from harness.frameworks import boosting
from harness.process import is_out_of_memory, run_in_fresh_process
from harness.twins.airline import airline_table
from harness.windows import Window, steady_rate
from reporting import charts

ROOT = Path(__file__).parent.parent


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        data="synthetic", data_dir=tmp_path / "data", device="cpu", seed=42, library="xgboost",
        trees=10, depth=6, max_seconds=0.2, threads=["1"], rows=[2000],
    )  # fmt: skip


# The table


def csv_rows(rows: int, seed: int) -> pd.DataFrame:
    """A file in the true format, of so many flights."""
    random = np.random.default_rng(seed)

    def numbered(count):
        return [f"c-{number}" for number in random.integers(1, count + 1, rows)]

    return pd.DataFrame(
        {
            "Month": numbered(12),
            "DayofMonth": numbered(31),
            "DayOfWeek": numbered(7),
            "DepTime": random.integers(1, 2400, rows),
            "UniqueCarrier": random.choice(["WN", "AA", "B6"], rows),
            "Origin": random.choice(["ORD", "ATL"], rows),
            "Dest": random.choice(["JFK", "SFO", "PHX"] if seed else ["ABQ"], rows),
            "Distance": random.integers(30, 4900, rows),
            "dep_delayed_15min": random.choice(["N", "Y"], rows, p=[0.8, 0.2]),
        }
    )


@pytest.fixture
def server(tmp_path, monkeypatch):
    """benchm-ml's files, shortened, over loopback."""
    folder = tmp_path / "served"
    folder.mkdir()
    csv_rows(300, 0).to_csv(folder / "train-0.1m.csv", index=False)
    csv_rows(200, 1).to_csv(folder / "test.csv", index=False)
    monkeypatch.setattr(airline, "TRAINING_FILES", {300: "train-0.1m.csv", 900: "train-1m.csv"})
    monkeypatch.setattr(airline, "TEST_ROWS", 200)
    with serve(folder) as server:
        monkeypatch.setattr(airline, "URL", f"{server.url}/")
        yield server


def test_the_real_table_is_fetched_once_and_coded_alike_in_both_parts(server, options):
    options.data, options.rows = "real", [250]
    airline.fetch(options)
    server.requests.clear()
    airline.fetch(options)
    assert server.requests == []
    table = airline.load(250, options)
    train, test = csv_rows(300, 0)[:250], csv_rows(200, 1)
    assert table.features.shape == (250, 8) and table.held_out_features.shape == (200, 8)
    assert table.features[:, 0].tolist() == [int(m[2:]) - 1 for m in train["Month"]]
    codes = {"ABQ": 0, "JFK": 1, "PHX": 2, "SFO": 3}  # one number per name, in either part
    assert set(table.features[:, 6]) == {0}
    assert table.held_out_features[:, 6].tolist() == [codes[name] for name in test["Dest"]]
    assert table.features[:, 7].tolist() == train["Distance"].tolist()
    assert table.labels.tolist() == [int(late == "Y") for late in train["dep_delayed_15min"]]


def test_a_torn_file_is_an_error_and_no_table_is_an_excuse(server, options):
    options.data, options.rows = "real", [300]
    airline.fetch(options)
    path = options.data_dir / "airline" / "train-0.1m.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:200]))
    with pytest.raises(utils.UserError, match="199 rows.*delete"):
        airline.load(300, options)
    options.rows = [901]
    with pytest.raises(utils.UsageError, match="--rows=901"):
        airline.fetch(options)
    options.rows = [900]  # the server lacks this one
    with pytest.raises(harness.data.DataUnreachable):
        airline.fetch(options)


def test_the_twin_is_the_same_for_everybody_and_like_the_real_table():
    features, late = airline_table(100_000, seed=42)
    again, _ = airline_table(100_000, seed=42)
    held_out, _ = airline_table(100_000, seed=42, part=1)
    assert np.array_equal(features, again) and not np.array_equal(features, held_out)
    distinct = [len(np.unique(column)) for column in features.T]
    assert distinct[:3] == [12, 31, 7] and distinct[4:7] == [22, 289, 289]
    assert late.mean() == pytest.approx(0.19, abs=1e-4)
    assert (features[:, 5] != features[:, 6]).all()
    assert features[:, 3].max() < 2400 and (features[:, 3] % 100).max() == 59
    assert features[:3].astype(int).tolist() == FIRST_FLIGHTS


FIRST_FLIGHTS = [
    [2, 6, 0, 1946, 17, 30, 277, 472],
    [6, 18, 2, 1418, 15, 280, 77, 1677],
    [3, 22, 6, 1619, 11, 219, 102, 1043],
]


# Repeated fits


def test_mean_and_interval_are_those_of_the_clock():
    seconds = [2.0, 2.5, 1.6, 2.2]
    row = fits.mean_columns("fit_seconds", seconds)
    assert row["fit_seconds"] == pytest.approx(2.075)
    # Student's t of 3 degrees of freedom is 3.182; the clock gives the same of four windows.
    assert row["fit_seconds_ci95"] == pytest.approx(3.18245 * np.std(seconds, ddof=1), rel=1e-4)
    assert fits.mean_columns("samples_per_second", seconds)["samples_per_second_ci95"] == (
        pytest.approx(steady_rate([Window(1, s, s, 1.0, True) for s in seconds])[1])
    )
    assert fits.mean_columns("fit_seconds", [2.0]) == {"fit_seconds": 2.0, "fit_seconds_ci95": None}
    rates = fits.rate_columns("rate", 4.15, row, "fit_seconds")
    assert rates["rate"] == pytest.approx(2)
    assert rates["rate_ci95"] / 2 == pytest.approx(row["fit_seconds_ci95"] / 2.075)


class FakeMeter:
    """Stands in for the energy meter and for the watch of other programs."""

    def begin(self):
        self.began = True

    def end(self):
        assert self.began
        return 120.0

    def columns(self):
        return {"other_load_percent": 1.5}


def test_fits_are_repeated_within_the_time_and_one_is_always_made(monkeypatch):
    clock = iter(np.arange(1000.0))  # every look at it is a second later
    monkeypatch.setattr(fits.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(fits, "Watch", lambda *device: FakeMeter())
    monkeypatch.setattr(fits, "energy_meter", lambda *device: FakeMeter())
    table = airline.Table(np.zeros((5000, 8)), np.zeros(5000), np.zeros((4, 8)), np.zeros(4))
    sizes = []

    def fit(features, labels):
        sizes.append(len(labels))
        return "model", {"fit_seconds": float(len(sizes)), "matrix_seconds": 1.0}

    row, model, late = fits.measure_fits(fit, lambda *_: "late", table, 4.0)
    assert sizes == [1000, 5000, 5000, 5000]  # the first is a warm-up, on few rows
    assert (row["fits"], row["fit_seconds"], row["matrix_seconds"]) == (3, 3.0, 1.0)
    assert row["sustained_ratio"] == pytest.approx(2 / 4)
    assert row["energy_joules_per_fit"] == 40 and row["average_power_watts"] == 120 / 4
    assert (model, late, row["other_load_percent"]) == ("model", "late", 1.5)
    monkeypatch.setattr(fits, "energy_meter", lambda *device: None)
    row, *_ = fits.measure_fits(fit, lambda *_: "late", table, 0.5)
    assert row["fits"] == 1 and row["fit_seconds_ci95"] is None
    assert "energy_joules_per_fit" not in row
    row, *_ = fits.measure_fits(fit, lambda *_: "late", table, None)
    assert row["fits"] == fits.FITS


def test_threads_are_names_and_numbers_no_more_than_there_are(monkeypatch):
    assert names_of(("all",), numbers=True)("1, 4,all") == ["1", "4", "all"]
    for text in ("0", "1.5", "some", "", "-2"):
        with pytest.raises(argparse.ArgumentTypeError, match="numbers and names"):
            names_of(("all",), numbers=True)(text)
    monkeypatch.setattr(harness.cores, "usable_cores", lambda: 4)
    assert [fits.thread_count(threads) for threads in ("all", "3")] == [4, 3]
    with pytest.raises(utils.UsageError, match="--threads=5.*4 cores"):
        fits.require_threads(["1", "5"])


def fresh(function, *arguments):
    """What `function` returns in a process of its own."""
    outcome = run_in_fresh_process(function, *arguments)
    assert outcome["status"] == "ok", outcome
    return outcome["value"]


def test_a_million_rows_are_named_in_full():
    assert fits.ROWS.named(1_000_000) == "1,000,000 rows"
    assert fits.THREADS.named("all") == "all threads"


def test_bars_stand_in_the_order_of_their_threads():
    bars = [{"machine": "M", "label": "M 8 GB", "names": [f"{threads} threads"], "protocol": "2023"}
            for threads in ("all", "16", "1", "4")]  # fmt: skip
    drawn = charts.with_series(pd.DataFrame(bars))["series"]
    assert [name.split(", ")[1].split()[0] for name in drawn] == ["1", "4", "16", "all"]


# XGBoost


def test_xgboost_does_what_a_bare_train_does(options):
    row, auc, torch = fresh(tabular_processes.xgboost_and_a_bare_train, options)
    assert not torch
    assert row["auc"] == pytest.approx(auc, abs=0.005)
    assert 0.55 < auc < 0.9
    assert row["million_row_trees_per_second"] * row["fit_seconds"] == pytest.approx(0.05)
    assert row["predict_million_rows_per_second"] * row["predict_seconds"] == pytest.approx(0.1)
    assert 0 < row["first_iteration_seconds"] < row["fit_seconds"]
    assert row["matrix_seconds"] > 0 and row["fits"] >= 2
    assert 0.1 < row["peak_memory_gb"] < 8


def test_a_cpu_number_is_never_filed_as_cuda(options):
    outcome = run_in_fresh_process(tabular_processes.trained_where_no_card_is, options)
    if outcome.get("value") == "this machine has a card":
        pytest.skip("XGBoost trains on CUDA here")
    assert outcome["status"] == "error"
    assert "trained on cpu, not on cuda" in outcome["error"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"device": "mps"}, "does not use Apple's GPU"),
        ({"device": "cuda:3"}, "no such card"),
        ({"library": "lightgbm", "device": "cuda"}, "LightGBM is measured on the CPU"),
    ],
)
def test_devices_that_are_not_there(options, monkeypatch, flags, says):
    monkeypatch.setattr(boosting.importlib.util, "find_spec", lambda _: "there")
    fake_nvml.install(monkeypatch)
    vars(options).update(flags)
    with pytest.raises(utils.UsageError, match=says):
        boosting.choose_device(options)


def test_a_card_is_named_as_cuda_counts(options, monkeypatch):
    cards = [Card(name, f"GPU-{name}") for name in ("L4", "A10", "NVIDIA GeForce RTX 4090", "B200")]
    fake_nvml.install(monkeypatch, *cards)
    monkeypatch.setattr(harness.nvidia, "card_bytes", {1: 23028 << 20, 2: 24564 << 20}.get)
    card = harness.nvidia.nvidia_card(2)
    assert card == ("NVIDIA GeForce RTX 4090", 24564 * 2**20)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-A10")
    assert harness.nvidia.nvidia_card(1) == ("A10", 23028 * 2**20)
    assert harness.nvidia.nvidia_card(2) is None
    options.device = "cuda:1"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")  # as it was, after the test
    assert str(boosting.choose_device(options)) == "cuda:1"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert (
        Device("cuda", 2, *card).columns("xgboost 3").items()
        >= {
            "device": "cuda (NVIDIA GeForce RTX 4090)",
            "machine": "NVIDIA_GeForce_RTX_4090_24GB",
        }.items()
    )


def test_lightgbm_in_its_place(options):
    row = fresh(tabular_processes.lightgbm_in_its_place, options)
    assert row["framework"].startswith("lightgbm ")
    assert 0.55 < row["auc"] < 0.9
    assert 0 < row["first_iteration_seconds"] < row["fit_seconds"]


def test_lightgbm_that_is_not_installed_is_said(options, monkeypatch):
    monkeypatch.setattr(boosting.importlib.util, "find_spec", lambda _: None)
    options.library = "lightgbm"
    with pytest.raises(utils.UsageError, match="pip install lightgbm"):
        boosting.choose_device(options)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit a process' memory")
def test_too_little_memory_is_a_result(options):
    assert (
        run_in_fresh_process(tabular_processes.measured_in_little_memory, options)["status"]
        == "out_of_memory"
    )


def test_how_the_libraries_say_out_of_memory():
    for name in ("XGBoostError", "LightGBMError"):
        error = type(name, (ValueError,), {})
        assert is_out_of_memory(error("std::bad_alloc"))
        assert not is_out_of_memory(error("a wrong parameter"))
    assert not is_out_of_memory(ValueError("std::bad_alloc"))


# scikit-learn


def test_every_estimator_does_all_its_work_in_so_many_threads(options):
    rows, auc, threads, torch = fresh(tabular_processes.every_estimator_and_a_bare_fit, options)
    assert not torch
    assert threads == {1}
    assert rows["HistGradientBoosting"]["auc"] == pytest.approx(auc, abs=0.005)
    assert rows["HistGradientBoosting"]["iterations"] == options.trees
    assert rows["KMeans"]["iterations"] == sklearn_test_tabular.KMEANS_ROUNDS
    for estimator, row in rows.items():
        assert row["fit_seconds"] > 0 and row["predict_seconds"] > 0
        assert row["threads_used"] == 1
        assert ("auc" in row) == (estimator not in ("KMeans", "PCA"))
        assert 0.55 < row.get("auc", 0.6) < 0.9


# As a user runs them


def test_a_whole_sweep_and_its_place_among_the_others(tmp_path):
    def run(*command):
        return subprocess.run(
            [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT
        )

    done = run(
        "xgboost_test_tabular.py", "--threads=1, all", "--rows=1_000", "--trees=3",
        "--max_seconds=0.1", "--data=synthetic", "--machine_name=M", f"--results_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "threads 1, all; rows 1000" in done.stdout
    (path,) = tmp_path.rglob("*.csv")
    assert path.parent.name == "results_xgboost_tabular"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    walked = [("1", "1000"), ("all", "1000")]
    assert [(row["threads"], row["rows"]) for row in rows] == walked
    assert {row["status"] for row in rows} == {"ok"}
    assert [int(row["threads_used"]) for row in rows] == [1, harness.cores.usable_cores()]
    checked = run("check_results.py", tmp_path).stdout.splitlines()
    # This machine may be busy with other tests.
    assert [line for line in checked if "others disturbed" not in line] == ["1 files, 0 problems"]
    assert "M: 4 numbers of 1 experiments" in run(
        "compare_results.py", "--list", f"--results_dir={tmp_path}"
    ).stdout  # fmt: skip


def test_threads_that_openmp_does_not_start_are_not_used():
    code = "import sklearn.ensemble; from harness import fits; print(fits.threads_used(2))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_THREAD_LIMIT": "1"},
    )  # fmt: skip
    assert done.stdout == "1\n"
