"""What only TensorFlow has: placement, Metal, `tf.data`, CUDA libraries, the user's keras.json."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fake_nvml
import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_nvml import Card

import utils
from harness.clock import Clock
from harness.frameworks import tensorflow
from harness.process import is_out_of_memory

ROOT = Path(__file__).parent.parent
METAL = tensorflow.Device("mps")


@pytest.fixture
def options():
    return argparse.Namespace(device="cpu", precision="fp32", compile=False, seed=1)


# Precision


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


# Training


def test_no_pause_between_epochs(options, monkeypatch):
    """`tf.data`'s autotuner would hold up the end of an epoch, up to as long again."""
    ends = []
    device = tensorflow.start(options)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    dataset = tensorflow.in_memory_batches(np.zeros((75, 4), np.float32), np.zeros(75, int), 1)
    training = tensorflow.fit(model, dataset, device)
    clock = Clock(1, 75, 3, training.synchronize)
    step = clock.step

    def slow_step(samples):
        time.sleep(0.02)
        ends.append(time.perf_counter())
        return step(samples)

    monkeypatch.setattr(clock, "step", slow_step)
    training.run(clock)
    pauses = np.diff(ends)[[74, 149]]
    assert pauses.max() < 0.5


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


# The user's own settings of Keras


SETTINGS = """
import argparse, json
from harness.frameworks import tensorflow
import keras
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
