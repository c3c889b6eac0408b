"""A training in PyTorch's plain loop as tests need it: of images, with the loss of the scripts."""

from torch.nn.functional import cross_entropy

from harness.frameworks import pytorch
from harness.frameworks.training import measure_training


def image_loss(model, images, labels):
    """Cross entropy of uint8 images (N, 3, H, W)."""
    return cross_entropy(model(images.float() / 127.5 - 1), labels)


def image_row(model, loader, optimizer, device, batch_size: int, options) -> dict:
    """The measured columns of an image classifier's row."""
    training = pytorch.Training(model, loader, image_loss, optimizer, device, options)
    return measure_training(training, len(loader.dataset), batch_size, options)
