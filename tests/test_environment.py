"""What the environment changes unseen: taken out, or said and recorded in every row."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.columns import COLUMNS
from harness.environment import CLUSTER, OVERRIDES, settle_environment
from harness.llm.experiment import COLUMNS as LLM_COLUMNS

ROOT = Path(__file__).parent.parent
SCRIPT = """
import os
import utils

utils.other_load = lambda: (0.0, None)  # it takes a second of every run
EXPERIMENT = utils.Experiment(
    title="Fake", chart="fake", description="", backend="fake", task="cv", dataset="none",
    model="tiny", input_size=8, epochs=1, varied=utils.batch_sizes("1"), samples=1000,
)

def prepare(options):
    return {"machine": "M", "device": "cpu", "framework": "fake 1", "data": "synthetic"}

def measure(batch_size, options):
    seen = [n for n in ("JAX_DISABLE_JIT", "WORLD_SIZE", "XLA_FLAGS") if n in os.environ]
    print("the measuring process sees", seen)
    return {"avg_time_per_epoch": 1.0, "samples_per_second": 2.0, "extrapolated": False}

if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
"""


@pytest.fixture
def environment(monkeypatch):
    """A function that leaves those of the given variables in the environment, and no others."""

    def leave(**variables):
        for name in list(os.environ):
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return leave


def run(path, *flags, **variables):
    return subprocess.run(
        [sys.executable, path, *flags], env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True, text=True,
    )  # fmt: skip


def test_a_row_says_what_is_set_and_what_changes_numbers_is_taken_out(tmp_path):
    (tmp_path / "fake_test.py").write_text(SCRIPT)
    done = run(
        tmp_path / "fake_test.py", f"--results_dir={tmp_path}",
        JAX_DISABLE_JIT="1", WORLD_SIZE="2", XLA_FLAGS="--xla_dump_to=/home/somebody/x",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "JAX_DISABLE_JIT is set, and not heeded" in done.stdout
    assert "WORLD_SIZE is set, and not heeded" in done.stdout
    (note,) = [line for line in done.stdout.splitlines() if "recorded in every row" in line]
    assert "XLA_FLAGS" in note
    assert "the measuring process sees ['XLA_FLAGS']" in done.stdout
    (path,) = tmp_path.rglob("*_results.csv")
    (row,) = csv.DictReader(path.open())
    assert "XLA_FLAGS=--xla_dump_to=/home/USER/x" in row["environment"].split("; ")
    assert "JAX_DISABLE_JIT" not in row["environment"]


def test_every_kind_of_row_has_the_column():
    from onnx_test_inference import EXPERIMENT as INFERENCE
    from sklearn_test_tabular import EXPERIMENT as TABULAR

    for columns in (COLUMNS, LLM_COLUMNS, TABULAR.columns, INFERENCE.columns):
        assert "environment" in columns


@pytest.mark.parametrize("name", ["llama2_test.py", "mlx_test_llama2.py"])
def test_language_models_go_through_it_too(name, tmp_path):
    done = run(
        ROOT / name, "--model=nowhere.gguf", f"--results_dir={tmp_path}", "--device=cpu"
        if name.startswith("mlx") else "--data=real", OMP_THREAD_LIMIT="1", GGML_SCHED_DEBUG="0",
    )  # fmt: skip
    assert done.returncode != 0
    assert "OMP_THREAD_LIMIT is set, and not heeded" in done.stdout
    assert "GGML_SCHED_DEBUG" in done.stdout


@pytest.mark.parametrize(
    "name",
    ["JAX_DISABLE_JIT", "TF_ENABLE_ONEDNN_OPTS", "TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE",
     "ACCELERATE_MIXED_PRECISION", "OMP_THREAD_LIMIT", "OMP_PROC_BIND", "MLX_DISABLE_COMPILE",
     "RANK", "MASTER_ADDR", "OMPI_COMM_WORLD_SIZE"],
)  # fmt: skip
def test_known_ones_are_taken_out(environment, capsys, name):
    environment(**{name: "1"})
    assert settle_environment() is None
    assert name not in os.environ
    assert f"{name} is set, and not heeded" in capsys.readouterr().out


def test_nobodys_secrets_places_or_names_are_recorded(environment, capsys):
    environment(
        HOME="/home/somebody", HF_TOKEN="hf_secret", CUDA_HOME="/usr/local/cuda", PATH="/bin",
        TF_CLI_CONFIG_FILE=".terraformrc",
        TF_API_KEY="secret", NCCL_DEBUG_FILE="/home/somebody/nccl log", CUDA_VERSION="13.0",
        JAX_COORDINATOR_ADDRESS="10.0.0.1:1234", TF_CPP_MIN_LOG_LEVEL="0", OMP_NUM_THREADS="2",
        CUDA_DEVICE_ORDER="PCI_BUS_ID", MKL_VERBOSE="\udcff",
    )  # fmt: skip
    assert settle_environment() == (
        "JAX_COORDINATOR_ADDRESS; MKL_VERBOSE=?; NCCL_DEBUG_FILE=~/nccl log; OMP_NUM_THREADS=2; "
        "TF_API_KEY"
    )
    said = capsys.readouterr().out
    assert said.count("Note") == 1 and "secret" not in said


def test_an_ordinary_environment_is_no_news(environment, capsys):
    environment(PATH="/bin", LANG="C.UTF-8", TERM="xterm")
    assert settle_environment() is None and capsys.readouterr().out == ""


def test_no_variable_is_named_twice():
    names = [*OVERRIDES, *CLUSTER]
    assert len(names) == len(set(names))


def test_torchrun_is_refused_in_a_line_that_says_how_to_start_it(tmp_path):
    (tmp_path / "fake_test.py").write_text(SCRIPT)
    done = run(
        tmp_path / "fake_test.py", f"--results_dir={tmp_path}",
        TORCHELASTIC_RUN_ID="none", RANK="0", WORLD_SIZE="2",
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == ""
    assert "torchrun" in line and "python fake_test.py" in line and "--num_devices" in line
