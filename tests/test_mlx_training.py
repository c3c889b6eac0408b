"""MLX's training hands its lazy work to the device step by step."""

import argparse

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from harness.frameworks import mlx


def test_each_step_is_handed_to_the_device_at_once(monkeypatch):
    """Else the device idles until a window ends, and then does the whole window's work."""
    handed, hand = [], mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda *work: (handed.append(work), hand(*work)))
    options = argparse.Namespace(precision="fp32", compile=False)

    def loss(model, features):
        return model(features).sum()

    training = mlx.Training(
        nn.Linear(2, 2), loss, optim.SGD(learning_rate=0.1), None, mlx.Device("cpu"), options
    )
    losses = [training.step((mx.ones((4, 2)),)) for _ in range(3)]
    assert all(work[0] is loss for work, loss in zip(handed, losses, strict=True))
    assert all(work[1] is training.state for work in handed)
