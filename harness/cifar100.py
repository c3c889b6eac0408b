"""CIFAR100 from its published archive: 50,000 images for training, or as many random ones."""

import pickle
import tarfile
from pathlib import Path

import harness.data

SAMPLES = 50_000
NUM_CLASSES = 100
# As keras.datasets.cifar100 has them; the file is the one that torchvision downloads too.
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"


def fetch(options) -> Path:
    """Path of the archive, brought into the data directory and checked."""
    return harness.data.download(URL, SHA256, options.data_dir)


def load_data(options):
    """The training images, or with synthetic data random ones of the same shape and classes.

    Returns:
        uint8 images (N, 32, 32, 3) of 0 to 255, and labels (N,).
    """
    import numpy as np

    if options.data == "real":
        with tarfile.open(fetch(options)) as archive:
            # A pickle may run code: this one's check sum is that of the published file.
            train = pickle.load(archive.extractfile("cifar-100-python/train"), encoding="latin1")
        images = train["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.array(train["fine_labels"])
    random = np.random.default_rng(options.seed)
    images = random.integers(256, size=(SAMPLES, 32, 32, 3), dtype=np.uint8)
    return images, random.integers(NUM_CLASSES, size=SAMPLES)
