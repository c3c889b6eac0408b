# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "torch>=2.11", "torchvision", "numpy", "filelock", "nvidia-ml-py>=12.535", "packaging",
#   "pandas", "psutil", "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""How fast does this machine train a ResNet50 on CIFAR100 with PyTorch?

Inside the clock: loading a batch from memory, moving it to the device, forward and backward pass,
Adam's update. Outside: imports, download, building the model, evaluation (there is none).
Model: torchvision's ResNet50 with 100 classes, untrained. Data: 50,000 images of 32x32x3.

    python pytorch_test_computer_vision_cifar100.py --epochs=1 --batch_sizes="32"
"""

import utils
from harness import cifar100

EXPERIMENT = utils.Experiment(
    title="PyTorch, ResNet50, CIFAR100",
    place=10,
    chart="pytorch_cv_resnet50_cifar100",
    description=__doc__,
    backend="pytorch",
    task="cv",
    dataset="cifar100",
    model="resnet50",
    input_size=32,
    epochs=5,
    varied=utils.batch_sizes("16, 32, 64, 128, 256, 512, 1024"),
    samples=cifar100.SAMPLES,
    classes=cifar100.NUM_CLASSES,
    quick={"batch_sizes": "32"},
    model_flags={"channels_last": False},  # images in NHWC memory order
)


class InMemoryImages:
    """uint8 images (N, 3, 32, 32) and labels (N,), of which DataLoader fetches a batch at once."""

    def __init__(self, images, labels):
        self.images = images
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, indices):
        return self.images[indices], self.labels[indices]


def load_data(options) -> InMemoryImages:
    """CIFAR100's training images, or random ones of the same number, shape and classes."""
    import torch

    images, labels = cifar100.load_data(options)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return InMemoryImages(images, torch.from_numpy(labels))


def make_loader(dataset, batch_size: int, device):
    """Shuffled batches, gathered from memory by plain indexing: no workers, no per-image Python."""
    from torch.utils.data import DataLoader

    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=tuple,
        pin_memory=device.type == "cuda",
    )


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    from harness.frameworks import pytorch

    return pytorch.prepare(options, cifar100.fetch)


def measure(batch_size: int, options) -> dict:
    """Train ResNet50 at one batch size; returns the measured columns of its row."""
    import torch
    from torchvision.models import resnet50

    from harness.frameworks import pytorch
    from harness.frameworks.training import measure_training

    device = pytorch.start(options)
    dataset = load_data(options)
    loader = make_loader(dataset, batch_size, device)
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    model = resnet50(num_classes=EXPERIMENT.classes).to(device, memory_format=memory_format)
    fused = pytorch.has_fused_adam(device, options.precision)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)

    def loss_function(model, images, labels):
        scaled = images.to(torch.float32, memory_format=memory_format).div_(127.5).sub_(1)
        return torch.nn.functional.cross_entropy(model(scaled), labels)

    training = pytorch.Training(model, loader, loss_function, optimizer, device, options)
    return measure_training(training, len(dataset), batch_size, options)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
