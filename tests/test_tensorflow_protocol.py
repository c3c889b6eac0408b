"""What the TensorFlow protocol promises: devices, the clock around `fit`, FLOPs, clear refusals."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_nvml
import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_nvml import Card

import harness.clock
import utils
from harness.frameworks import fit, tensorflow
from harness.frameworks.training import measure_training
from harness.process import is_out_of_memory

ROOT = Path(__file__).parent.parent


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


def measure_tiny(options, batch_size=32, samples=256):
    """A small network on images whose brightness is their class; returns the row."""
    device = tensorflow.start(options)
    labels = np.arange(samples) % 2
    images = np.repeat((labels * 200).astype(np.uint8), 3072).reshape(-1, 32, 32, 3)
    scale = keras.layers.Rescaling(1 / 127.5, offset=-1)
    dense = keras.layers.Dense(2, activation="softmax", dtype="float32")
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    model = keras.Model(inputs, dense(keras.layers.Flatten()(scale(inputs))))
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=options.compile)
    dataset = tensorflow.in_memory_batches(images, labels, batch_size)
    training = tensorflow.fit(model, dataset, device)
    return measure_training(training, samples, batch_size, options)


def test_loss_falls_on_learnable_data(options):
    first = measure_tiny(options)["train_loss"]
    options.epochs = 10
    assert measure_tiny(options)["train_loss"] < first / 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_loss_falls_in_mixed_precision(options, precision):
    options.precision, options.epochs = precision, 10
    assert measure_tiny(options)["train_loss"] < 0.1


def test_loss_falls_when_compiled(options):
    options.compile, options.epochs = True, 10
    assert measure_tiny(options)["train_loss"] < 0.1


def test_columns_are_pytorchs(options):
    # In a process of its own, because PyTorch must not be loaded after TensorFlow.
    code = """
import argparse, json, sys, torch, harness.clock
from harness.frameworks import pytorch
sys.path.insert(0, "tests")
from tiny_training import image_row
harness.clock.PROBE_SECONDS = 0.1
options = argparse.Namespace(device="cpu", precision="fp32", compile=False, channels_last=False,
                             seed=1, epochs=1, max_seconds=None, thermal_protocol="cold")
device = pytorch.start(options)
data = torch.utils.data.TensorDataset(torch.zeros(256, 3, 8, 8, dtype=torch.uint8),
                                      torch.zeros(256, dtype=torch.long))
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
adam = torch.optim.Adam(model.parameters())
row = image_row(model, torch.utils.data.DataLoader(data, 32), adam, device, 32, options)
print(json.dumps([list(row), list(pytorch.facts(device))]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    measured, facts = json.loads(done.stdout.splitlines()[-1])
    row = measure_tiny(options)
    assert set(row) == set(measured)
    assert set(tensorflow.facts(tensorflow.Device("cpu"))) == set(facts)
    # Nothing was unusual, no card computed, and the run was short.
    may_be_empty = {"sustained_ratio", "disturbance", "thermal_state", "gpu_power_limit_watts"}
    empty = {name for name, value in row.items() if value is None and "ci95" not in name}
    assert empty <= may_be_empty


def test_device_is_waited_for_at_window_edges_only(options, monkeypatch):
    waited, read = [], []
    monkeypatch.setattr(tensorflow.Fit, "synchronize", lambda training: waited.append(1))
    monkeypatch.setattr("harness.frameworks.training.probe_device", lambda *arguments: 1.0)
    windows = []
    measured = harness.clock.Clock.measurement
    monkeypatch.setattr(
        harness.clock.Clock, "measurement",
        lambda clock: windows.extend(clock.windows) or measured(clock),
    )  # fmt: skip
    # Keras reads the loss of a step by this function.
    monkeypatch.setattr(
        "keras.src.utils.python_utils.pythonify_logs", lambda logs: read.append(logs) or logs or {}
    )
    batch_end = fit.TimedFit.on_train_batch_end
    monkeypatch.setattr(
        fit.TimedFit, "on_train_batch_end",
        lambda timed, batch, logs: batch_end(timed, batch, logs=object()),
    )  # fmt: skip
    row = measure_tiny(options, batch_size=1, samples=2000)
    # At the start, after the first step, after the warm-up, at every window's end and at the stop.
    assert len(waited) == 4 + len(windows) < 100 < row["steps_timed"]
    assert not any(read)


def test_no_pause_between_epochs(options, monkeypatch):
    """`tf.data`'s autotuner would hold up the end of an epoch, up to as long again."""
    ends = []
    step = harness.clock.Clock.step

    def slow_step(clock, samples):
        harness.clock.time.sleep(0.02)
        ends.append(harness.clock.time.perf_counter())
        return step(clock, samples)

    monkeypatch.setattr("harness.frameworks.training.probe_device", lambda *arguments: 1.0)
    monkeypatch.setattr(harness.clock.Clock, "step", slow_step)
    options.epochs = 3
    measure_tiny(options, batch_size=1, samples=75)
    pauses = np.diff(ends)[[74, 149]]
    assert pauses.max() < 0.5


def test_max_seconds_ends_within_an_epoch(options):
    options.max_seconds = 0.5
    row = measure_tiny(options, batch_size=1, samples=50_000)
    assert row["extrapolated"] and 0 < row["steps_timed"] < 49_000
    assert row["steps_per_epoch"] == 50_000 and row["train_loss"] < 1


def test_smaller_last_batch_is_left_out_and_its_time_is_counted(options):
    clocks = []
    measured = harness.clock.Clock.measurement
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.frameworks.training.probe_device", lambda *arguments: 1.0)
        patch.setattr(
            harness.clock.Clock,
            "measurement",
            lambda clock: clocks.append(clock) or measured(clock),
        )
        options.epochs = 2
        row = measure_tiny(options, batch_size=32, samples=70)
    (clock,) = clocks
    assert (clock.steps, clock.samples, row["steps_per_epoch"]) == (4, 128, 2)
    assert not row["extrapolated"]
    assert row["avg_time_per_epoch"] == pytest.approx(clock.total_seconds / 128 * 70)


def test_flops_are_those_of_the_model(options):
    row = measure_tiny(options)
    # 2 x 3072 x 2 forward; the same again for the weights' gradient (the input needs none).
    flops = 2 * 2 * 3072 * 2
    assert row["tflops_per_second"] == pytest.approx(flops * row["samples_per_second"] / 1e12)


def test_flops_of_convolutions_and_attention(options):
    tensorflow.start(options)
    images = keras.Input((8, 8, 3))
    hidden = keras.layers.Conv2D(4, 3, padding="same")(images)  # 8 x 8 x 4
    hidden = keras.layers.Conv2D(5, 3, strides=2, padding="same")(hidden)  # 4 x 4 x 5
    sequence = keras.layers.Reshape((16, 5))(hidden)
    attended = keras.layers.MultiHeadAttention(2, 3)(sequence, sequence)
    outputs = keras.layers.GlobalAveragePooling1D()(attended)
    model = keras.Model(images, outputs)
    model.compile("adam", "sparse_categorical_crossentropy")
    first = 2 * 8 * 8 * 4 * 3 * 3 * 3
    second = 2 * 4 * 4 * 5 * 3 * 3 * 4
    projections = 4 * 2 * 16 * 5 * 6
    attention = 2 * (2 * 2 * 16 * 16 * 3)
    # Twice as much backward as forward, but the images need no gradient.
    expected = 2 * first + 3 * (second + projections + attention)
    counted = tensorflow.count_flops(model, tf.zeros((7, 8, 8, 3)), tf.zeros((7,), tf.int32))
    assert counted == 7 * expected


def test_batch_larger_than_the_data_is_an_error_that_says_so(options):
    with pytest.raises(ValueError, match="batch size 512 is larger than the 256"):
        measure_tiny(options, batch_size=512)


def test_full_batches_hold_every_sample_at_most_once():
    features, labels = np.arange(70, dtype=np.int32).reshape(70, 1), np.arange(70)
    batches = list(tensorflow.in_memory_batches(features, labels, 32))
    assert [len(labels) for _, labels in batches] == [32, 32]
    seen = np.concatenate([labels for _, labels in batches]).tolist()
    assert len(set(seen)) == 64 and set(seen) <= set(range(70)) and seen != sorted(seen)
    assert all(np.array_equal(features[:, 0], labels) for features, labels in batches)


def test_exhausted_memory_is_recognised():
    with pytest.raises(tf.errors.ResourceExhaustedError) as caught:
        tf.zeros((2**45,))
    assert is_out_of_memory(caught.value)
    # What XLA compiled says it in another error.
    assert is_out_of_memory(
        tf.errors.InternalError(None, None, "RESOURCE_EXHAUSTED: Out of memory")
    )
    assert not is_out_of_memory(tf.errors.InternalError(None, None, "the kernel is wrong"))


# Devices


def test_missing_device_is_bad_usage(options):
    if tensorflow.GPUS:
        pytest.skip("this machine has the device")
    options.device = "cuda"
    with pytest.raises(utils.UsageError, match="--device=cuda"):
        tensorflow.start(options)


@pytest.fixture
def metal(monkeypatch):
    """Pretends that this is a Mac whose GPU TensorFlow sees."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(tensorflow, "GPUS", ["/physical_device:GPU:0"])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *arguments: None)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *arguments: None)
    monkeypatch.setattr(tensorflow, "places", lambda device: ["/CPU:0"])


def test_metal_is_mps_and_refuses_to_compile(options, metal):
    options.device = "auto"
    assert tensorflow.start(options) == tensorflow.Device("mps")
    options.compile = True
    with pytest.raises(utils.UsageError, match="--compile.*Metal"):
        tensorflow.start(options)


def test_memory_that_metal_does_not_tell_is_unknown(metal, monkeypatch):
    def silent(device):
        raise ValueError("No matching devices found")

    monkeypatch.setattr(tf.config.experimental, "get_memory_info", silent)
    assert tensorflow.Fit.peak_memory_gb(SimpleNamespace(device=tensorflow.Device("mps"))) is None


def test_precision_that_the_device_lacks_is_bad_usage(options, monkeypatch):
    def lacking(*arguments, **keywords):
        raise tf.errors.UnimplementedError(None, None, "no such kernel")

    monkeypatch.setattr(tf.nn, "conv2d", lacking)
    options.precision = "fp16"
    with pytest.raises(utils.UsageError, match="--precision=fp16"):
        tensorflow.start(options)


def test_nvidia_card_without_cuda_libraries_is_said(options, monkeypatch, capsys):
    monkeypatch.setattr(tensorflow, "GPUS", [])
    fake_nvml.install(monkeypatch, Card())
    options.device = "auto"
    tensorflow.facts(tensorflow.start(options))
    (line,) = capsys.readouterr().out.splitlines()
    assert "tensorflow[and-cuda]" in line
    options.device = "cuda"
    with pytest.raises(utils.UsageError, match="--device=cuda.*tensorflow.and-cuda"):
        tensorflow.start(options)


def test_card_is_named_as_pytorch_names_it(options, monkeypatch):
    details = {"device_name": "NVIDIA TITAN RTX", "compute_capability": (7, 5)}
    monkeypatch.setattr(tensorflow, "GPUS", ["/physical_device:GPU:0"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    monkeypatch.setattr(tensorflow, "card_bytes", lambda index: 24_576 * 2**20)
    facts = tensorflow.facts(tensorflow.card(0))
    assert (facts["machine"], facts["device"]) == (
        "NVIDIA_TITAN_RTX_24GB",
        "cuda (NVIDIA TITAN RTX)",
    )
    monkeypatch.setattr(tensorflow, "card_bytes", lambda index: None)
    assert tensorflow.facts(tensorflow.card(0))["machine"] == "NVIDIA_TITAN_RTX"


@pytest.mark.parametrize("error", ["NotFoundError", "ImportError"])
def test_wrong_tensorflow_metal_is_one_line_with_the_versions_that_fit(tmp_path, error):
    for package, version in (("tensorflow", "2.21.0"), ("tensorflow_metal", "1.2.0")):
        folder = tmp_path / f"{package}-{version}.dist-info"
        folder.mkdir()
        name = package.replace("_", "-")
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    errors = tmp_path / "tensorflow/python/framework"
    errors.mkdir(parents=True)
    for folder in (errors, errors.parent):
        (folder / "__init__.py").touch()
    (errors / "errors_impl.py").write_text(
        "class OpError(Exception): pass\nclass NotFoundError(OpError): pass\n"
    )
    (tmp_path / "tensorflow/__init__.py").write_text(
        "from tensorflow.python.framework.errors_impl import NotFoundError\n"
        f"raise {error}('dlopen(libmetal_plugin.dylib): Symbol not found')\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "tensorflow_test_nlp.py", f"--results_dir={tmp_path / 'results'}"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "tensorflow 2.18.1 or 2.19.1 with tensorflow-metal 1.2.0" in line
