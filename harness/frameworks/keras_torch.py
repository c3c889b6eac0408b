"""Keras on PyTorch: what the protocol in `fit` asks of a backend."""

import os

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.frameworks import pytorch
from harness.frameworks.pytorch import facts, peak_memory_gb, reset_peak_memory

__all__ = ["facts", "reset_peak_memory", "peak_memory_gb"]


def start(options) -> torch.device:
    """Device and precision as in the PyTorch experiments; call it before Keras is imported.

    Raises:
        UsageError: the device is missing, or cannot compute in the precision.
    """
    device = pytorch.start(options)
    os.environ["KERAS_TORCH_DEVICE"] = str(device)  # read once, when Keras is imported
    return device


def batches(features, labels, batch_size: int) -> dict:
    """Arrays (N, ...) and (N,) for `model.fit`, which shuffles them and gathers whole batches.

    As many as full batches hold: a smaller one would be compiled for anew.
    """
    whole = len(labels) // batch_size * batch_size
    return {"x": features[:whole], "y": labels[:whole], "batch_size": batch_size, "shuffle": True}


def full_batch(data: dict):
    """Features and labels of a batch of `fit`'s arguments, in the host's memory."""
    return data["x"][: data["batch_size"]], data["y"][: data["batch_size"]]


def make_train_step(model, features, labels):
    """One update as in `fit`, on the same batch each time; of a model that `fit` has trained."""
    batch = torch.from_numpy(features), torch.from_numpy(labels)
    return lambda: model.train_function([batch])


def require_compiled(model) -> None:
    """Raises RuntimeError where steps that were to be compiled were not."""
    if model.jit_compile:
        pytorch.require_compiled()


def placed_on(model) -> str:
    """The type of the device where the weights are: `cpu`, `mps` or `cuda`."""
    return " and ".join(sorted({variable.value.device.type for variable in model.weights}))


def synchronize(model):
    """A function that waits until the device has done all steps of `model`."""
    return pytorch.synchronize(torch.device(placed_on(model)))


def count_flops(model, features, labels) -> int:
    """Operations of a forward and backward pass: matrix products and convolutions.

    Attention is written out as matrix products, as the other backends have it: a fused kernel
    computes some of them twice.
    """

    def backward():
        with sdpa_kernel(SDPBackend.MATH):
            outputs = model(torch.from_numpy(features), training=True)
        model.compute_loss(features, torch.from_numpy(labels), outputs).backward()

    count = pytorch.count_flops(backward)
    model.zero_grad()
    return count
