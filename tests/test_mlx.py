"""MLX: the networks are torchvision's and Keras', and laziness hides nothing from the clock."""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

import mlx_test_nlp as nlp
from harness.endings import is_out_of_memory
from harness.frameworks import mlx
from harness.frameworks.training import measure_training
from harness.models.resnet50_mlx import ResNet50
from reporting.tables import load_results

CPU = mlx.Device("cpu")

ROOT = Path(nlp.__file__).parent


@pytest.fixture
def options(monkeypatch):
    monkeypatch.setattr("harness.clock.PROBE_SECONDS", 0.05)
    options = argparse.Namespace(
        device="cpu",
        precision="fp32",
        compile=False,
        seed=1,
        thermal_protocol="cold",
        epochs=1,
        max_seconds=None,
    )
    mlx.start(options)
    return options


class Brightness(nn.Module):
    """Tells light from dark images; remembers the shape and type of all that it was called with."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 2)
        self._calls = []

    def __call__(self, images):
        self._calls.append((images.shape, self.fc.weight.dtype))
        return self.fc(images.reshape(len(images), -1).astype(self.fc.weight.dtype))


def adam():
    """As in the scripts."""
    return optim.Adam(learning_rate=1e-3, bias_correction=True)


def image_loss(model, images, labels):
    return mlx.cross_entropy(model(images.astype(mx.float32) / 127.5 - 1), labels)


def measure_tiny(options, batch_size=32, epochs=1, samples=250):
    """The row, and the model, of a small network on images whose brightness is their class."""
    options.epochs = epochs
    labels = np.arange(samples) % 2
    images = np.repeat((labels * 200).astype(np.uint8), 12).reshape(-1, 2, 2, 3)
    batches = mlx.in_memory_batches(images, labels, batch_size)
    model = Brightness()
    device = mlx.choose_device("cpu")
    training = mlx.Training(model, image_loss, adam(), batches, device, options)
    row = measure_training(training, samples, batch_size, options)
    return row, model


# The networks


def torchvision_weights(network) -> list:
    """Its weights as MLX has them: images and kernels have their channels last."""
    arrays = {name: value.numpy() for name, value in network.state_dict().items() if value.ndim}
    return [
        (name, mx.array(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array))
        for name, array in arrays.items()
    ]


def test_resnet50_is_torchvisions():
    torch.manual_seed(0)
    theirs, ours = resnet50(num_classes=100), ResNet50(100)
    for name, weight in theirs.named_parameters():
        if name.endswith("bn3.weight"):
            # Random ones make the training pass magnify the rounding of its sums a thousandfold.
            torch.nn.init.constant_(weight, 0.1)
    ours.load_weights(torchvision_weights(theirs))  # strict: no name is missing or left over
    count = sum(weight.size for _, weight in tree_flatten(ours.trainable_parameters()))
    assert count == sum(weight.numel() for weight in theirs.parameters())
    images = np.random.default_rng(0).random((8, 64, 64, 3), np.float32)
    for training in (True, False):  # in this order, so that the running statistics count too
        theirs.train(training)
        ours.train(training)
        with torch.no_grad():
            expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        found = np.array(ours(mx.array(images)))
        assert np.abs(found - expected).max() < 1e-4, training


def test_resnet50_has_torchvisions_operations():
    theirs = resnet50(num_classes=100)
    with FlopCounterMode(display=False) as counter:
        loss = torch.nn.functional.cross_entropy(
            theirs(torch.zeros(2, 3, 32, 32)), torch.ones(2).long()
        )
        loss.backward()
    images, labels = mx.zeros((2, 32, 32, 3), mx.uint8), mx.zeros(2, mx.int32)
    assert mlx.count_flops(ResNet50(100), image_loss, (images, labels)) == counter.get_total_flops()


def test_small_transformer_is_that_of_keras():
    from harness.frameworks import tensorflow  # noqa: F401 - Keras is to run on it
    from harness.models.small_transformer import small_transformer

    flags = nlp.EXPERIMENT.model_flags | {"vocab_size": 50, "maxlen": 20, "embed_dim": 16}
    theirs = small_transformer(**flags | {"num_transformer_blocks": 2})
    ours = nlp.build_model(argparse.Namespace(**flags | {"num_transformer_blocks": 2}))
    values = iter(theirs.get_weights())
    weights = {"tokens.weight": next(values), "positions.weight": next(values)}
    for block in ("blocks.0.", "blocks.1."):
        for part in ("query", "key", "value", "out"):
            # (embed_dim, heads, size of a head), or for the output (heads, size, embed_dim).
            kernel, bias = next(values), next(values)
            weights[f"{block}attention.{part}_proj.weight"] = kernel.reshape(16, 16).T
            weights[f"{block}attention.{part}_proj.bias"] = bias.reshape(16)
        for layer in ("attention_norm", "widen", "narrow", "feed_forward_norm"):
            weights[f"{block}{layer}.weight"] = next(values).T
            weights[f"{block}{layer}.bias"] = next(values)
    weights |= {"classify.weight": next(values).T, "classify.bias": next(values)}
    assert next(values, None) is None
    ours.load_weights([(name, mx.array(value)) for name, value in weights.items()])
    tokens = np.random.default_rng(0).integers(50, size=(4, 20))
    ours.eval()
    found = mx.softmax(ours(mx.array(tokens)), axis=-1)
    assert np.abs(np.array(found) - theirs.predict(tokens, verbose=0)).max() < 1e-5


# Training


def test_nothing_compiles_inside_the_clock_but_the_first_step(options):
    options.compile = True
    _, model = measure_tiny(options, epochs=3)
    # Python runs only when a step is traced: once. The last trace, of two samples, counts FLOPs.
    assert [shape[0] for shape, _ in model._calls] == [32, 2]


def test_adam_is_pytorchs():
    theirs = torch.ones(4, requires_grad=True)
    their_adam, our_adam = torch.optim.Adam([theirs], lr=1e-3), adam()
    ours = {"weight": mx.ones(4)}
    for step in range(5):
        gradient = np.float32([0.1, -2.0, 30.0, 1e-3]) * (step + 1)
        theirs.grad = torch.from_numpy(gradient)
        their_adam.step()
        ours = our_adam.apply_gradients({"weight": mx.array(gradient)}, ours)
    assert np.abs(np.array(ours["weight"]) - theirs.detach().numpy()).max() < 1e-6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_pass_is_in_the_precision_and_the_weights_stay_float32(options, precision):
    options.precision = precision
    seen = []
    model = Brightness()

    def loss(model, images, labels):
        logits = model(images.astype(mx.float32) / 127.5 - 1)
        seen.append(logits.dtype)
        return mlx.cross_entropy(logits, labels)

    training = mlx.Training(model, loss, adam(), None, CPU, options)
    before = mx.array(model.fc.weight)
    training.step((mx.zeros((32, 2, 2, 3), mx.uint8), mx.zeros(32, mx.int32)))
    training.synchronize()
    assert seen == [mlx.DTYPES[precision]]
    assert model.fc.weight.dtype == mx.float32 and not mx.array_equal(model.fc.weight, before)


def test_fp16_does_not_overflow_in_batch_norm():
    model = ResNet50(10, blocks=(1, 1, 1, 1))
    model.set_dtype(mx.float16)
    # A sum over 40,000 values of 200 is far beyond 65,504, the largest number in float16.
    assert mx.isfinite(model.bn1(mx.full((1, 200, 200, 64), 200.0, mx.float16))).all()


# What goes wrong


@pytest.mark.parametrize(
    "words",
    [
        "[metal::malloc] Attempting to allocate 48736917632 bytes which is greater than the "
        "maximum allowed buffer size of 30150672384 bytes.",
        "[malloc_or_wait] Unable to allocate 48736917632 bytes.",
        "[METAL] Command buffer execution failed: Insufficient Memory "
        "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    ],
)
def test_mlx_out_of_memory_is_known(words):
    assert is_out_of_memory(RuntimeError(words))


def test_script_as_a_user_runs_it(tmp_path):
    command = [
        sys.executable, ROOT / "mlx_test_nlp.py", "--data=synthetic", "--batch_sizes=8, 4",
        "--max_seconds=1", "--embed_dim=8", "--ff_dim=8", "--maxlen=10", "--no-compile", "--resume",
        "--machine_name=here", f"--results_dir={tmp_path}",
    ]  # fmt: skip
    for said in ("samples/s", "skipped, it has a good row already"):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout + done.stderr
    path = tmp_path / "results_mlx_nlp" / "here_imdb_smalltransformer_200_mlx_results.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["batch_size"], row["status"]) for row in rows] == [("8", "ok"), ("4", "ok")]
    assert all(float(row["samples_per_second"]) > 0 for row in rows)
    assert float(rows[0]["tflops_per_second"]) > 0 and float(rows[0]["peak_memory_gb"]) > 0
    assert rows[0]["framework"] == f"mlx {mx.__version__}" and rows[0]["device"] == "cpu"
    # Training compiled is the default, and so what the name of a configuration leaves out.
    found = load_results(tmp_path).measurements["configuration"]
    assert all("without compile" in words for words in found)
