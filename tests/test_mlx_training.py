"""MLX's training hands its lazy work to the device step by step, and waits for all of it."""

import argparse

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

from harness.frameworks import mlx


@pytest.fixture
def training():
    def loss(model, features):
        return model(features).sum()

    options = argparse.Namespace(precision="fp32", compile=False)
    optimizer = optim.SGD(learning_rate=0.1)
    return mlx.Training(nn.Linear(2, 2), loss, optimizer, None, mlx.Device("cpu"), options)


def test_each_step_is_handed_to_the_device_at_once(training, monkeypatch):
    """Else the device idles until a window ends, and then does the whole window's work."""
    handed, hand = [], mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda *work: (handed.append(work), hand(*work)))
    losses = [training.step((mx.ones((4, 2)),)) for _ in range(3)]
    assert all(work[0] is loss for work, loss in zip(handed, losses, strict=True))
    assert all(work[1] is training.state for work in handed)


def test_the_clock_waits_for_weights_and_optimizer(training, monkeypatch):
    waited = []
    monkeypatch.setattr(mx, "eval", lambda *work: waited.append(work))
    training.synchronize()
    assert [work[0] is training.state for work in waited] == [True]
