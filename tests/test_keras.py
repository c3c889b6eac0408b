"""Keras 3 on three backends: the same training, waited for at its end, on the device asked for."""

import argparse
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from answers import Answers

import harness.results
import harness.sweep
import keras_test_nlp as script
import utils
from harness.frameworks import keras

ROOT = Path(__file__).parent.parent
BACKENDS = script.BACKENDS


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user who has set Keras up in another way."""
    home = tmp_path_factory.mktemp("home")
    (home / ".keras").mkdir()
    asked = {"floatx": "float16", "image_data_format": "channels_first", "backend": "numpy"}
    (home / ".keras/keras.json").write_text(json.dumps(asked))
    return home


@pytest.fixture(scope="module")
def seen(home):
    """A function that returns what keras_backend.py found out of a backend."""

    @cache
    def seen(backend: str) -> dict:
        settings = {"KERAS_BACKEND": "numpy", "KERAS_MAX_STEPS_PER_EPOCH": "1", "HOME": str(home)}
        done = subprocess.run(
            [sys.executable, ROOT / "tests/keras_backend.py", backend],
            env=os.environ | settings, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return seen


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_of_the_users_settings_is_read(backend, seen, home):
    found = seen(backend)
    assert found["backend"] == backend
    assert (found["floatx"], found["image_data_format"]) == ("float32", "channels_last")
    assert sorted(path.name for path in (home / ".keras").iterdir()) == ["keras.json"]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_training_is_the_same_as_on_tensorflow(backend, seen):
    for ours, theirs in zip(seen(backend)["losses"], seen("tensorflow")["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=0.02)
        assert ours[0] != ours[1]  # it learns


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_operations_are_as_many_as_on_tensorflow(backend, seen):
    """Of a small transformer, and of the real ResNet50 on 32x32 pixels."""
    ours, theirs = seen(backend)["flops"], seen("tensorflow")["flops"]
    assert ours == pytest.approx(theirs, rel=0.01)
    assert min(theirs) > 1000


def test_jax_is_waited_for_to_the_end_of_the_last_step(seen):
    is_ready = seen("jax")["is_ready"]
    assert all(is_ready["ours"])
    # What a missing, or a mistaken, synchronization would look like.
    assert not any(is_ready["no wait"])
    assert not any(is_ready["the state as Keras holds it"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_facts_are_of_the_backend_and_its_device(backend, seen):
    facts = seen(backend)["facts"]
    assert facts["framework"].startswith("keras 3.") and f", {backend} " in facts["framework"]
    assert facts["compile"] is (backend == "jax")
    assert seen(backend)["other_device"] == "Keras placed the weights on cpu, not on cuda"


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_contract_of_all_frameworks_holds(backend, seen):
    """As on TensorFlow, in test_frameworks.py; here a user's step limit of 1 is set besides."""
    broken = dict(seen(backend)["broken_promises"])
    assert broken.pop("") >= 20  # tests that passed
    assert not broken, "\n\n".join(f"{name}\n{why}" for name, why in broken.items())


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_tensorflow_stays_out_of_the_other_backends(backend, seen):
    assert not seen(backend)["tensorflow_is_loaded"]


# The sweep


OPTIONS = argparse.Namespace(
    backends=list(BACKENDS), batch_sizes=[8], data="synthetic", machine_name=None, epochs=1,
    precision="fp32", compile=False, repeats=1, shuffle=False, seed=1, resume=True,
    max_seconds=None, cooldown=0.0,
)  # fmt: skip
MACHINE = {"device": "cpu", "machine": "M", "compile": False}


@pytest.fixture
def prepared(monkeypatch):
    """A function that prepares where jax is missing, and torch is on a GPU or not."""

    def prepare(torch_device="cpu"):
        facts = {name: MACHINE | {"framework": f"keras 3.15.1, {name} 2"} for name in BACKENDS}
        facts["torch"] |= {"device": torch_device, "machine": "G" if torch_device != "cpu" else "M"}
        monkeypatch.setattr(
            keras.importlib.util, "find_spec", lambda name: None if name == "jax" else name
        )
        monkeypatch.setattr(
            keras, "run_in_fresh_process",
            lambda function, name, options: {"status": "ok", "value": facts[name]},
        )  # fmt: skip
        return keras.prepare(OPTIONS, None)

    return prepare


def test_backend_that_is_not_installed_is_said_and_left_out(prepared, monkeypatch, capsys):
    facts = prepared()
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "jax is not installed, so it is left out: python -m pip install jax"
    options = argparse.Namespace(**vars(OPTIONS))
    outcome = {"status": "ok", "value": facts}
    process = Answers(lambda *_: outcome)
    facts = harness.sweep.settle(script.EXPERIMENT, options, keras.prepare, process)
    assert options.backends == ["tensorflow", "torch"]
    assert (facts["machine"], facts["framework"]) == ("M", "keras 3.15.1")
    point = {"keras_backend": "torch", "batch_size": 8}
    row = harness.sweep.facts_of(point, facts)
    assert (row["keras_backend"], row["framework"]) == ("torch", "keras 3.15.1, torch 2")


def test_no_backend_at_all_is_one_line(monkeypatch):
    monkeypatch.setattr(keras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(utils.UserError, match="--backends: none of tensorflow, torch, jax"):
        keras.prepare(OPTIONS, None)


def test_machine_is_that_of_the_gpu_that_a_backend_uses(prepared, capsys):
    facts = prepared(torch_device="cuda (NVIDIA H100)")
    assert (facts["machine"], facts["device"]) == ("G", "cuda (NVIDIA H100)")
    assert facts["keras_backend"]["tensorflow"]["device"] == "cpu"
    assert "tensorflow sees no GPU here" in capsys.readouterr().out


def test_resume_knows_each_backends_version(prepared, monkeypatch):
    outcome = {"status": "ok", "value": prepared()}
    options = argparse.Namespace(**vars(OPTIONS))
    process = Answers(lambda *_: outcome)
    facts = harness.sweep.settle(script.EXPERIMENT, options, keras.prepare, process)
    good = {"status": "ok", "value": {"avg_time_per_epoch": 1.0, "extrapolated": False}}
    monkeypatch.setattr(harness.sweep, "FreshProcess", lambda: Answers(lambda *_: good))

    def rows(saved):
        measured = []
        harness.sweep.measure_all(script.EXPERIMENT, options, facts, None, saved, measured.append)
        return [
            {name: harness.results.to_cell(value) for name, value in row.items()}
            for row in measured
        ]

    first = rows([])
    assert [row["framework"] for row in first] == [
        "keras 3.15.1, tensorflow 2",
        "keras 3.15.1, torch 2",
    ]
    assert rows(first) == []
    older = [row | {"framework": row["framework"].replace("torch 2", "torch 1")} for row in first]
    assert [row["keras_backend"] for row in rows(older)] == ["torch"]


def test_script_as_a_user_runs_it(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "keras_test_nlp.py", "--data=synthetic", "--max_seconds=1",
         "--backends=jax", "--batch_sizes=16", "--maxlen=16", f"--results_dir={tmp_path}"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = tmp_path.rglob("*_results.csv")
    assert path.parent.name == "results_keras_nlp"
    assert path.name.endswith("_imdb_smalltransformer_200_keras_results.csv")
    header, (row,) = harness.results.read_rows(path)
    assert header[:2] == ["keras_backend", "batch_size"]
    assert (row["status"], row["keras_backend"], row["compile"]) == ("ok", "jax", "True")
    assert row["framework"].startswith("keras 3.") and ", jax " in row["framework"]
    assert float(row["tflops_per_second"]) > 0


def test_fp16_that_jax_cannot_do_here_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "keras_test_nlp.py", "--data=synthetic", "--precision=fp16",
         "--backends=jax", "--batch_sizes=16", "--device=cpu", f"--results_dir={tmp_path}"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--precision=fp16: JAX cannot do it on cpu" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_backend_that_does_not_start_is_a_line_and_the_others_are_measured(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    options = argparse.Namespace(device="auto", precision="fp32", compile=False, seed=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # where there is a card
    assert set(keras.facts_of_each(["jax", "torch"], options)) == {"torch"}
    said = capsys.readouterr()
    (line,) = [line for line in said.out.splitlines() if "jax" in line]
    assert line.startswith("jax is left out: --device=auto") and "JAX_PLATFORMS=cuda" in line
    assert "Traceback" not in said.err


def test_no_backend_that_starts_is_bad_usage(monkeypatch):
    refused = {"status": "user_error", "error": "--device=cuda: none here", "exit_code": 2}
    monkeypatch.setattr(keras, "run_in_fresh_process", lambda *_: refused)
    with pytest.raises(utils.UsageError, match="--device=cuda: none here"):
        keras.facts_of_each(["jax", "torch"], None)
