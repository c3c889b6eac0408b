"""What TensorFlow is told and asked on devices that are not here: stand-ins, and the CPU."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import utils
from harness.frameworks import fit, tensorflow, training

ROOT = Path(__file__).parent.parent
CPU, CUDA, METAL = (tensorflow.Device(kind) for kind in ("cpu", "cuda", "mps"))


@pytest.fixture
def options(monkeypatch):
    monkeypatch.setattr("harness.clock.PROBE_SECONDS", 0.1)
    return argparse.Namespace(
        device="cpu",
        precision="fp32",
        compile=False,
        seed=1,
        thermal_protocol="cold",
        epochs=1,
        max_seconds=None,
    )


# Precision


@pytest.mark.parametrize("operation", ["matmul", "conv2d"])
def test_a_device_that_rounds_as_tf32_does_is_refused(monkeypatch, operation):
    exact = {"matmul": tf.Tensor.__matmul__, "conv2d": tf.nn.conv2d}[operation]

    def rounded(a, *others, **keywords):
        return exact(tf.round(a * 2**10) / 2**10, *others, **keywords)

    tensorflow.require_precision(CPU, "fp32")
    if operation == "conv2d":
        monkeypatch.setattr(tf.nn, "conv2d", rounded)
    else:
        monkeypatch.setattr(type(tf.zeros(1)), "__matmul__", rounded)
    with pytest.raises(utils.UsageError, match="--precision=fp32: .*TF32.*NVIDIA_TF32_OVERRIDE"):
        tensorflow.require_precision(CPU, "fp32")


def test_precision_is_proven_without_help_of_the_processor(monkeypatch):
    """With soft placement an operation that the device lacks would run on the processor."""
    placement = []

    def watched(dtype):
        placement.append(tf.config.get_soft_device_placement())
        raise tf.errors.InvalidArgumentError(None, None, "no kernel for GPU:0")

    before = tf.config.get_soft_device_placement()
    monkeypatch.setattr(tensorflow, "fine_products", watched)
    monkeypatch.setattr(tensorflow, "places", lambda device: ["/CPU:0"])
    with pytest.raises(utils.UsageError, match="--precision=bf16: mps cannot do it"):
        tensorflow.require_precision(METAL, "bf16")
    assert placement == [False]
    assert tf.config.get_soft_device_placement() == before


def test_an_operation_without_kernel_on_the_device_is_found():
    """The real placement: the processor has no kernel of a TPU's operation, nor a GPU here."""
    if tensorflow.GPUS:
        pytest.skip("this machine has a GPU")
    with pytest.raises(utils.UsageError, match="mps cannot do it"):
        tensorflow.require_precision(METAL, "fp32")


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False)])
def test_bf16_by_emulation_is_refused(monkeypatch, capability, refused):
    details = {"device_name": "Tesla T4", "compute_capability": capability}
    monkeypatch.setattr(tensorflow, "GPUS", ["/physical_device:GPU:0"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    monkeypatch.setattr(tensorflow, "fine_products", lambda dtype: [])
    if not refused:
        tensorflow.require_precision(tensorflow.card(0), "bf16")
        return
    with pytest.raises(utils.UsageError, match="--precision=bf16: Tesla T4 has no bf16"):
        tensorflow.require_precision(tensorflow.card(0), "bf16")


# Memory


def test_peak_memory_is_counted_anew_after_the_first_step(options, monkeypatch):
    forgotten = []
    timed = fit.TimedFit(keras.Sequential(), Clock(), lambda: forgotten.append(CPU))
    for batch in range(3):
        timed.on_train_batch_end(batch)
    assert forgotten == [CPU]


class Clock:
    """Counts steps only."""

    steps, batch_size = 0, 8

    def step(self, samples):
        self.steps += 1
        return False


def test_trials_are_forgotten_on_cuda_only(monkeypatch):
    forgotten = []
    monkeypatch.setattr(tf.config.experimental, "reset_memory_stats", forgotten.append)
    for device in (CPU, METAL, CUDA):
        tensorflow.Fit.reset_peak_memory(SimpleNamespace(device=device))
    assert forgotten == ["GPU:0"]


def test_no_memory_at_all_is_unknown(monkeypatch):
    monkeypatch.setattr(
        tf.config.experimental, "get_memory_info", lambda device: {"peak": 0, "current": 0}
    )
    assert tensorflow.Fit.peak_memory_gb(SimpleNamespace(device=METAL)) is None


# The same step in the run and in the probe


def test_the_probes_steps_are_the_runs(options, monkeypatch):
    """A batch from a host iterator, and a loss that comes back through one."""
    steps = {"run": [], "probe": []}
    part = "run"
    probe = training.probe_device

    def probe_and_count(*arguments):
        nonlocal part
        part = "probe"
        return probe(*arguments)

    monkeypatch.setattr(training, "probe_device", probe_and_count)
    device = tensorflow.start(options)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.make_train_function()
    exact = model.train_function

    def watched(data):
        steps[part].append(isinstance(data, tf.data.Iterator))
        return exact(data)

    model.train_function = watched
    features, labels = np.zeros((64, 4), np.float32), np.zeros(64, np.int64)
    dataset = tensorflow.in_memory_batches(features, labels, 16)
    training.measure_training(tensorflow.fit(model, dataset, device), 64, 16, options)
    assert len(steps["run"]) == 4 and len(steps["probe"]) > 4
    assert all(steps["run"]) and all(steps["probe"])


# The user's own settings of Keras


SETTINGS = """
import argparse, json
from harness.frameworks import tensorflow
import keras
from types import SimpleNamespace
tensorflow.start(argparse.Namespace(device="cpu", precision="fp32", compile=False, seed=1))
print(json.dumps([keras.config.floatx(), keras.config.image_data_format(), keras.config.epsilon(),
                  keras.config.backend(), keras.Input((2,)).dtype]))
"""


def test_settings_in_the_home_folder_change_nothing(tmp_path):
    settings = {"floatx": "float16", "image_data_format": "channels_first", "epsilon": 0.1,
                "backend": "torch"}  # fmt: skip
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-c", SETTINGS], capture_output=True, text=True, cwd=ROOT, check=True,
        env={**os.environ, "HOME": str(tmp_path), "KERAS_HOME": str(tmp_path / ".keras")},
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [
        "float32", "channels_last", 1e-7, "tensorflow", "float32",
    ]  # fmt: skip
