"""What the PyTorch protocol costs: ratios of two things measured in one run, interleaved.

The shared training loop with its clock, against a bare one of the same model and batch.
"""

import argparse
import time

import torch
from torchvision.models import resnet18

import pytorch_test_computer_vision_cifar100 as script
from harness.clock import Clock
from harness.frameworks import pytorch
from selfchecks.pairs import interleaved_ratios

CPU = torch.device("cpu")


def loader_rate(loader) -> float:
    """Samples per second of one pass, after the workers have started."""
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    samples = sum(len(labels) for _, labels in batches)
    return samples / (time.perf_counter() - start)


def loop_ratios(batch_size: int = 8, steps: int = 6, pairs: int = 30) -> list[float]:
    """Of interleaved pairs, the bare loop's seconds divided by the script's own.

    Model and batches are small, so that what the clock costs per step weighs more than in a
    benchmark.
    """
    options = argparse.Namespace(precision="fp32", compile=False)
    model = resnet18(num_classes=script.EXPERIMENT.classes).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def loss_function(model, images, labels):
        return torch.nn.functional.cross_entropy(model(images.float() / 127.5 - 1), labels)

    images = torch.randint(256, (batch_size * steps, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(script.EXPERIMENT.classes, (batch_size * steps,))
    loader = script.make_loader(script.InMemoryImages(images, labels), batch_size, CPU)
    training = pytorch.Training(model, loader, loss_function, optimizer, CPU, options)

    def bare():
        for images, labels in loader:
            optimizer.zero_grad()
            loss_function(model, images, labels).backward()
            optimizer.step()

    def shared():
        clock = Clock(batch_size, len(loader.dataset), 1, pytorch.synchronize(CPU))
        training.run(clock)

    return interleaved_ratios(shared, bare, pairs)
