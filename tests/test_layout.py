"""The house: what may import what, what lies where, and that an experiment is one file."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbformat import read

ROOT = Path(__file__).parent.parent
TOOLS = {"utils.py", "check_results.py", "compare_results.py", "run_all.py", "selfcheck.py"}
PACKAGES = ("harness", "reporting", "selfchecks")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, with all that its name begins with."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def first_words(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_the_top_level_holds_experiments_utils_and_tools_only():
    others = {path.name for path in ROOT.glob("*.py") if "_test" not in path.name}
    assert others == TOOLS


def test_imports_run_one_way():
    forbidden = {
        "harness": {"utils", "reporting", "selfchecks"},
        "reporting": {"utils", "selfchecks"},
        "selfchecks": {"reporting"},
    }
    for path in MODULES:
        package = path.relative_to(ROOT).parts[0]
        assert not first_words(imported(path)) & forbidden[package], path
    for script in ROOT.glob("*_test*.py"):
        assert not first_words(imported(script)) & {"reporting", "selfchecks"}, script


def test_no_circle_of_imports():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    needs = {name: imported(path) & set(names) for name, path in names.items()}
    while free := [name for name, others in needs.items() if not others & set(needs)]:
        for name in free:
            del needs[name]
    assert needs == {}


@pytest.mark.parametrize("path", [*MODULES, *ROOT.glob("*.py")], ids=lambda path: path.name)
def test_no_file_is_too_long_to_read(path):
    assert len(path.read_text().splitlines()) <= 400


MADE_UP = '''
"""How fast does this machine count?"""

import utils

EXPERIMENT = utils.Experiment(
    title="Counting, to a number",
    chart="counting",
    description=__doc__,
    backend="python",
    task="counting",
    dataset="numbers",
    model="loop",
    varied=(
        utils.Varied("way", "ways", "up, down", "{}", "way", choices=("up", "down")),
        utils.Varied("rows", "rows", "10, 1_000", "{} rows", "rows"),
    ),
    speeds=(utils.Speed("rows_per_second", "rows/s", "rows per second", "speed", True),),
    columns=("way", "rows", "rows_per_second", "status", "error", "data", *utils.MACHINE_COLUMNS),
)


def prepare(options):
    facts = {"device": "cpu", "framework": "python 3", "data": "real"}
    return facts | {"machine": options.machine_name}


def measure(way, rows, options):
    calm = {"other_load_percent": 0.0, "other_benchmark_running": False}  # whatever runs beside it
    return {"rows_per_second": 100.0 + rows if way == "up" else 50.0, **calm}


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
'''


@pytest.fixture
def copy(tmp_path):
    """The project with one more experiment, and nothing else touched."""
    folder = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".*", "results", "data", "quickstart", "tests", "env")
    shutil.copytree(ROOT, folder, ignore=ignored)
    (folder / "counting_test.py").write_text(MADE_UP)
    return folder


def run(folder, script, *arguments):
    done = subprocess.run(
        [sys.executable, folder / script, *arguments, f"--results_dir={folder / 'results'}"]
        if script != "check_results.py"
        else [sys.executable, folder / script, folder / "results"],
        capture_output=True, text=True, cwd=folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_experiment_is_one_file(copy):
    for machine in ("A", "B"):
        said = run(copy, "counting_test.py", f"--machine_name={machine}")
        assert "way up, rows 1000: 1,100.00 rows/s" in said
    assert run(copy, "check_results.py") == "2 files, 0 problems\n"
    assert "A: 4 numbers of 1 experiments" in run(copy, "compare_results.py", "--list")
    compared = json.loads(run(copy, "compare_results.py", "A", "B", "--format=json"))
    first = compared["comparisons"][0]
    assert (first["experiment"], first["test"]) == ("Counting, to a number", "down, 10 rows")
    assert first["ratio"] == 1
    notebook = read(copy / "plot_results.ipynb", as_version=4)
    resources = {"metadata": {"path": str(copy)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    drawn = {path.stem for path in (copy / "results").glob("*.png")}
    assert {"counting", "overview"} <= drawn


LANGUAGE_MODEL = '''
"""How fast does this machine train a tiny language model?"""

import utils

EXPERIMENT = utils.Experiment(
    title="PyTorch, language model, random words",
    chart="pytorch_language_model",
    description=__doc__,
    backend="pytorch",
    task="lm",
    dataset="words",
    model="gru",
    input_size=16,
    epochs=1,
    varied=utils.batch_sizes("8"),
    samples=512,
    classes=50,
)


def prepare(options):
    from harness.frameworks import pytorch

    return pytorch.prepare(options, lambda options: None)


def measure(batch_size, options):
    import torch

    from harness.frameworks import pytorch
    from harness.frameworks.training import measure_training

    device = pytorch.start(options)
    words = torch.utils.data.TensorDataset(torch.randint(50, (512, 17)))
    loader = torch.utils.data.DataLoader(words, batch_size, drop_last=True)
    model = torch.nn.ModuleDict({
        "words": torch.nn.Embedding(50, 32),
        "body": torch.nn.GRU(32, 32, batch_first=True),
        "head": torch.nn.Linear(32, 50),
    }).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_function(model, tokens):
        hidden, _ = model["body"](model["words"](tokens[:, :-1]))
        return torch.nn.functional.cross_entropy(
            model["head"](hidden).flatten(0, 1), tokens[:, 1:].flatten()
        )

    training = pytorch.Training(model, loader, loss_function, optimizer, device, options)
    return measure_training(training, len(words), batch_size, options)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
'''


def test_a_training_that_is_no_image_classifier_is_one_file_too(copy):
    (copy / "language_model_test.py").write_text(LANGUAGE_MODEL)
    flags = ("--machine_name=A", "--device=cpu", "--max_seconds=0.2")
    assert "batch size 8: " in run(copy, "language_model_test.py", *flags)
    (path,) = (copy / "results").rglob("*_results.csv")
    row = pd.read_csv(path).iloc[0]
    assert row["status"] == "ok" and row["train_loss"] == pytest.approx(np.log(50), rel=0.1)
    assert row["samples_per_second"] > 0 and row["tflops_per_second"] > 0
    assert run(copy, "check_results.py").endswith("1 files, 0 problems\n")
