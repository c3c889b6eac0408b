"""compare_results.py --frameworks: the same network on the same data, one machine, two backends."""

import csv
import io
import json
import sys

import pytest
import result_files as files

import compare_results
from harness.columns import COLUMNS
from harness.results import append_row

FRAMEWORKS = {"pytorch": "torch 2.15.0", "tensorflow": "tensorflow 2.21.0", "mlx": "mlx 0.32.4"}
# MLX trains compiled by default, the others do not.
COMPILED = {"pytorch": False, "tensorflow": False, "mlx": True}


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


def write(results_dir, backend, seconds, machine="Here", size=32, **changed):
    settings = {"framework": FRAMEWORKS[backend], "compile": COMPILED[backend]} | changed
    row = files.training_row(machine, size, seconds, 50_000, **settings)
    name = f"cifar100_resnet50_32_{backend}"
    append_row(files.training_path(results_dir, f"{backend}_cv", machine, name), row, COLUMNS)


def test_two_frameworks_on_one_machine(tmp_path, compare):
    write(tmp_path, "mlx", 50.0)
    write(tmp_path, "pytorch", 100.0)
    write(tmp_path, "pytorch", 1.0, machine="There")
    code, output, errors = compare("--frameworks", "here", "--format=csv")
    assert code == 0 and errors.startswith("Caution: frameworks are different programs")
    row, mean = csv.DictReader(io.StringIO(output))
    assert row["experiment"] == "ResNet50, CIFAR100: MLX / PyTorch"
    assert (float(row["ratio"]), row["verdict"]) == (2, "first is faster")
    assert float(row["low"]) < 2 < float(row["high"])
    assert mean["test"] == "geometric mean"


def test_each_pair_of_three_frameworks_is_named(tmp_path, compare):
    for seconds, backend in enumerate(FRAMEWORKS, start=1):
        write(tmp_path, backend, seconds)
    _, output, _ = compare("--frameworks", "Here", "--format=json")
    rows = json.loads(output)["comparisons"]
    ratios = {row["experiment"].partition(": ")[2]: row["ratio"] for row in rows}
    assert ratios == pytest.approx(
        {"MLX / PyTorch": 1 / 3, "MLX / TensorFlow": 2 / 3, "PyTorch / TensorFlow": 2}
    )


@pytest.mark.parametrize(
    "changed",
    [{"precision": "bf16"}, {"data": "synthetic"}, {"compile": False}, {"size": 64}],
)
def test_only_the_same_work_is_compared(tmp_path, compare, changed):
    write(tmp_path, "mlx", 50.0, **changed)
    write(tmp_path, "pytorch", 100.0)
    code, _, errors = compare("--frameworks", "Here")
    assert code == 1 and "Here trained no network on the same data in two frameworks" in errors


def test_a_machine_is_named_once(tmp_path, compare):
    write(tmp_path, "mlx", 50.0)
    assert compare("A", "--frameworks", "Here")[0] == 2
    code, _, errors = compare("--frameworks", "Hera")
    assert code == 1 and "nearest: Here" in errors


def test_backends_of_keras_are_frameworks_too(tmp_path, compare):
    for backend, seconds in (("tensorflow", 100.0), ("torch", 200.0)):
        row = files.training_row(
            "Here", 32, seconds, 50_000, framework=f"keras 3.15.1, {backend} 2", compile=False
        )
        path = files.training_path(tmp_path, "keras_cv", "Here", "cifar100_resnet50_32_keras")
        append_row(path, {"keras_backend": backend, **row}, ["keras_backend", *COLUMNS])
    write(tmp_path, "tensorflow", 100.0)
    _, output, _ = compare("--frameworks", "Here", "--format=json")
    rows = json.loads(output)["comparisons"]
    ratios = {row["experiment"]: row["ratio"] for row in rows if row["test"] == "batch 32"}
    assert ratios == {
        "ResNet50, CIFAR100: Keras 3 on tensorflow / Keras 3 on torch": 2,
        "ResNet50, CIFAR100: Keras 3 on tensorflow / TensorFlow": 1,
        "ResNet50, CIFAR100: Keras 3 on torch / TensorFlow": 0.5,
    }
