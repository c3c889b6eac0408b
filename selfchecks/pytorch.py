"""What the PyTorch protocol costs: ratios of two things measured in one run, interleaved.

    python -m selfchecks.pytorch

Loader: CIFAR100's batches gathered from memory, against a per-image DataLoader with two workers
(PIL image to tensor, as most tutorials do it). Loop: the shared training loop with its clock,
against a bare one of the same model and batch.
"""

import argparse
import statistics
import time

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.transforms.functional import to_pil_image, to_tensor

import pytorch_test_computer_vision_cifar100 as script
from harness.clock import Clock
from harness.frameworks import pytorch
from selfchecks.pairs import in_words, interleaved_ratios

CPU = torch.device("cpu")


class PerImage(Dataset):
    """The same images, one at a time, the way torchvision's CIFAR100 with ToTensor gives them."""

    def __init__(self, data):
        self.images = [to_pil_image(image) for image in data.images]
        self.labels = data.labels.tolist()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return to_tensor(self.images[index]), self.labels[index]


def loader_rate(loader) -> float:
    """Samples per second of one pass, after the workers have started."""
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    samples = sum(len(labels) for _, labels in batches)
    return samples / (time.perf_counter() - start)


def loader_ratio(batch_size: int, rounds: int = 3) -> float:
    """Median over rounds of our loader's rate divided by the usual one's."""
    data = script.load_data(argparse.Namespace(data="synthetic", seed=1))
    ours = script.make_loader(data, batch_size, CPU)
    usual = DataLoader(PerImage(data), batch_size, shuffle=True, num_workers=2)
    return statistics.median(loader_rate(ours) / loader_rate(usual) for _ in range(rounds))


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


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for size, target in ((1024, 5), (32, 1)):
        print(f"loader, batch size {size}: {loader_ratio(size):.2f} (target {target})", flush=True)
    print(f"training loop: {in_words(loop_ratios())} (target 0.98)")
