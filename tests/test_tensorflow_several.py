"""TensorFlow on two devices, for which this machine's processor stands: the same training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# In a process of its own each: a processor is divided before TensorFlow has used it.
HEAD = """
import argparse, json, sys
import harness.clock
from harness.frameworks import tensorflow
from harness.frameworks.training import measure_training
import keras, numpy as np, tensorflow as tf
harness.clock.PROBE_SECONDS = 0.3
options = argparse.Namespace(
    device="cpu", precision="fp32", compile=False, seed=1, epochs=1, max_seconds=None,
    thermal_protocol="cold", num_devices=int(sys.argv[1]),
)
device = tensorflow.start(options)
def build(optimizer):
    with tensorflow.on_all(device):
        model = keras.Sequential([
            keras.Input((8, 8, 3), dtype="uint8"), keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax"),
        ])
        model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    return model
images = np.random.default_rng(0).integers(0, 256, (640, 8, 8, 3), dtype=np.uint8)
labels = (images.mean((1, 2, 3)) > 127.5).astype(int)
"""
WEIGHTS = """
model = build(keras.optimizers.SGD(0.1))
batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16).take(20)
model.fit(batches, shuffle=False, verbose=0)
print(json.dumps(np.concatenate([w.numpy().ravel() for w in model.trainable_variables]).tolist()))
"""
ROW = """
dataset = tensorflow.in_memory_batches(images, labels, 8 * device.count)
training = tensorflow.fit(build("adam"), dataset, device)
row = measure_training(training, 640, 8, options, devices=device.count)
print(json.dumps(row | {"facts": device.count}))
"""


def run(code, devices):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code, str(devices)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    return done, done.stdout.splitlines()[-1] if done.returncode == 0 else ""


def test_two_devices_train_what_one_trains():
    ours, alone = (json.loads(run(WEIGHTS, devices)[1]) for devices in (2, 1))
    assert ours == pytest.approx(alone, abs=1e-5)
    assert len(set(ours)) > 100


def test_a_row_counts_the_samples_of_both_and_the_work_of_one_sample():
    row, alone = (json.loads(run(ROW, devices)[1]) for devices in (2, 1))
    assert (row["facts"], alone["facts"]) == (2, 1)
    assert (row["steps_per_epoch"], alone["steps_per_epoch"]) == (40, 80)
    # The model's operations for a sample are what they are.
    flops = [1e12 * r["tflops_per_second"] / r["samples_per_second"] for r in (row, alone)]
    assert flops[0] == pytest.approx(flops[1], rel=1e-3)
    assert row["compute_samples_per_second"] > 0


def test_more_devices_than_there_are_is_bad_usage():
    done, _ = run("", 1000)
    assert "UsageError: --num_devices=1000: there are" in done.stderr
