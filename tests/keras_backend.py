"""What test_keras.py wants to know of one backend, found out in a process of its own, as JSON.

python tests/keras_backend.py jax
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pytest

import keras_test_computer_vision_cifar100 as cifar100
import keras_test_nlp as nlp
from harness.device import Device
from harness.frameworks import keras
from harness.process import UserError

OPTIONS = argparse.Namespace(
    device="cpu", precision="fp32", compile=False, seed=1,
    thermal_protocol="cold", epochs=4, max_seconds=None,
    embed_dim=8, num_heads=2, ff_dim=16, num_transformer_blocks=1, dropout_rate=0.0, maxlen=12,
    vocab_size=50,
)  # fmt: skip
BATCH_SIZE, STEPS = 16, 20


def main(backend: str) -> dict:
    device = keras.start(backend, OPTIONS)
    import keras as library

    found = {
        "backend": library.config.backend(),
        "floatx": library.config.floatx(),
        "image_data_format": library.config.image_data_format(),
        "facts": keras.facts_of(backend, OPTIONS),
        "losses": [losses(*tiny) for tiny in (tiny_transformer(backend), tiny_network(backend))],
        "flops": [flops(backend, *tiny) for tiny in (tiny_transformer(backend), resnet(backend))],
        "is_ready": is_ready() if backend == "jax" else None,
        "other_device": other_device(backend, device),
        "tensorflow_is_loaded": "tensorflow" in sys.modules,
        "broken_promises": broken_promises(backend) if backend != "tensorflow" else {},
    }
    return found


class Failures:
    """What failed, and why, by the name of the test; under "" how many passed."""

    def __init__(self):
        self.found = {"": 0}

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.found[report.nodeid] = report.longreprtext
        self.found[""] += report.when == "call" and report.passed


def broken_promises(backend: str) -> dict:
    """The contract of test_frameworks.py, held to this process' backend."""
    os.environ["FRAMEWORK"] = f"keras_{backend}"
    failures = Failures()
    contract = Path(__file__).with_name("test_frameworks.py")
    pytest.main([str(contract), "--noconftest", "-p", "no:cacheprovider"], [failures])
    return failures.found


def tiny_transformer(backend: str):
    tokens = np.random.default_rng(0).integers(50, size=(BATCH_SIZE * STEPS, 12), dtype=np.int32)
    labels = np.any(tokens < 5, axis=1).astype(int)
    return nlp.build_model(OPTIONS, keras.compiles(backend, OPTIONS)), tokens, labels


def tiny_network(backend: str):
    """Strided convolutions, with normalization over the batch."""
    from keras import Input, Model, layers

    images = Input((8, 8, 3), dtype="uint8")
    hidden = layers.Rescaling(1 / 127.5, offset=-1)(images)
    for features in (4, 8):
        hidden = layers.Conv2D(features, 3, strides=2, padding="same")(hidden)
        hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    outputs = layers.Dense(2, activation="softmax")(layers.Flatten()(hidden))
    model = Model(images, outputs)
    compiled = keras.compiles(backend, OPTIONS)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=compiled)
    random = np.random.default_rng(0)
    pictures = random.integers(256, size=(BATCH_SIZE * STEPS, 8, 8, 3), dtype=np.uint8)
    return model, pictures, (pictures.mean(axis=(1, 2, 3)) > 127.5).astype(int)


def resnet(backend: str):
    pictures = np.zeros((2, 32, 32, 3), np.uint8)
    return cifar100.build_model(keras.compiles(backend, OPTIONS)), pictures, np.zeros(2, int)


def losses(model, features, labels) -> list[float]:
    """Mean over 20 steps on fixed batches from fixed weights, and on all samples after them."""
    random = np.random.default_rng(1)
    model.set_weights(
        [
            random.normal(scale=0.1, size=value.shape).astype(value.dtype) + (value == 1)
            if value.dtype == np.float32
            else value
            for value in model.get_weights()
        ]
    )
    history = model.fit(features, labels, batch_size=BATCH_SIZE, shuffle=False, verbose=0)
    after = model.evaluate(features, labels, batch_size=BATCH_SIZE, verbose=0)
    return [float(history.history["loss"][0]), float(after)]


def flops(backend: str, model, features, labels) -> float:
    model.optimizer.build(model.trainable_variables)
    training = keras.fit_in_memory(model, features[:2], labels[:2], Device("cpu"), 2)
    return training.count_flops(*training.full_batch()) / 2


def is_ready() -> dict:
    """Whether the whole live state of a long step is there: at once, and after several waits."""
    import jax
    import keras as library

    wide = library.layers.Dense(1500, activation="relu")
    head = library.layers.Dense(2, activation="softmax")
    model = library.Sequential([library.Input((1500,)), wide, head])
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=True)
    features = np.random.default_rng(0).normal(size=(512 * 12, 1500)).astype("float32")
    labels = np.zeros(len(features), int)
    training = keras.fit_in_memory(model, features, labels, Device("cpu"), 512)
    ways = {
        "no wait": lambda: None,
        "one weight": lambda: jax.block_until_ready(model._jax_state["trainable_variables"][-1]),
        "the state as Keras holds it": lambda: jax.block_until_ready(model._jax_state),
        "ours": training.synchronize,
    }
    seen = {name: [] for name in ways}

    class Look(library.callbacks.CallbackList):
        def on_train_batch_end(self, batch, logs=None):
            name = list(ways)[batch % len(ways)]
            ways[name]()
            live = [value for group in model._jax_state.values() for value in group]
            seen[name].append(all(value.is_ready() for value in live))
            jax.block_until_ready(live)

    model.fit(**training.data, verbose=0, callbacks=Look(add_history=True, model=model))
    return seen


def other_device(backend: str, device) -> str:
    """What is said where the weights are not on the device that was asked for."""
    model, features, labels = tiny_network(backend)
    elsewhere = argparse.Namespace(type="cuda", index=0)
    try:
        keras.fit_in_memory(model, features, labels, elsewhere, BATCH_SIZE)
    except UserError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    terminal = os.dup(1)
    os.dup2(2, 1)
    found = main(sys.argv[1])
    os.write(terminal, json.dumps(found).encode())
