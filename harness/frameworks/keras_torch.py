"""Keras on PyTorch: its device, and what `fit.Fit` asks of a backend."""

import os

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import harness.frameworks.fit
from harness.frameworks import pytorch
from harness.frameworks.pytorch import facts

__all__ = ["facts"]


def start(options) -> torch.device:
    """Device and precision as in the PyTorch experiments; call it before Keras is imported.

    Raises:
        UsageError: the device is missing, or cannot compute in the precision.
    """
    device = pytorch.start(options)
    os.environ["KERAS_TORCH_DEVICE"] = str(device)  # read once, when Keras is imported
    return device


class Fit(harness.frameworks.fit.Fit):
    def __init__(self, model, data: dict, device: torch.device):
        super().__init__(model, data, device)
        self.synchronize = pytorch.synchronize(device)

    def placed_on(self) -> str:
        return " and ".join(sorted({v.value.device.type for v in self.model.weights}))

    def require_compiled(self) -> None:
        if self.model.jit_compile:
            pytorch.require_compiled()

    def make_update(self, features, labels):
        batch = torch.from_numpy(features), torch.from_numpy(labels)
        return lambda: self.model.train_function([batch])

    def count_flops(self, features, labels) -> int:
        def backward():
            # Attention is written out as matrix products, as the other backends have it: a fused
            # kernel computes some of them twice.
            with sdpa_kernel(SDPBackend.MATH):
                outputs = self.model(torch.from_numpy(features), training=True)
            self.model.compute_loss(features, torch.from_numpy(labels), outputs).backward()

        count = pytorch.count_flops(backward)
        self.model.zero_grad()
        return count

    def reset_peak_memory(self) -> None:
        pytorch.reset_peak_memory(self.device)

    def peak_memory_gb(self) -> float | None:
        return pytorch.peak_memory_gb(self.device)
