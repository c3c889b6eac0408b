# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "tensorflow==2.18.1; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow-metal==1.2.0; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow>=2.21,<2.22; sys_platform == 'linux'",
#   "keras>=3.12", "numpy", "filelock", "pandas", "psutil", "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""How fast does this machine train a ResNet50 on CIFAR100 with TensorFlow?

Inside the clock: gathering a batch from memory, moving it to the device, forward and backward pass,
Adam's update. Outside: imports, download, building the model, evaluation (there is none).
Model: Keras' ResNet50 with 100 classes, untrained. Data: 50,000 images of 32x32x3.

    python tensorflow_test_computer_vision_cifar100.py --epochs=1 --batch_sizes="32"
"""

import harness.data
import utils

EXPERIMENT = utils.Experiment(
    title="TensorFlow, ResNet50, CIFAR100",
    chart="tensorflow_cv_resnet50_cifar100",
    description=__doc__,
    backend="tensorflow",
    task="cv",
    dataset="cifar100",
    model="resnet50",
    input_size=32,
    epochs=5,
    varied=utils.batch_sizes("16, 32, 64, 128, 256, 512, 1024"),
    samples=50_000,
    classes=100,
    quick={"batch_sizes": "32"},
)
# As keras.datasets.cifar100 has them; the file is the one that torchvision downloads too.
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"


def fetch(options):
    """Path of CIFAR100's archive, brought into the data directory and checked."""

    return harness.data.download(URL, SHA256, options.data_dir)


def load_data(options):
    """CIFAR100's training images, or random ones of the same number, shape and classes.

    Returns:
        uint8 images (N, 32, 32, 3) of 0 to 255, and labels (N,).
    """
    import pickle
    import tarfile

    import numpy as np

    if options.data == "real":
        with tarfile.open(fetch(options)) as archive:
            # A pickle may run code: this one's check sum is that of the published file.
            train = pickle.load(archive.extractfile("cifar-100-python/train"), encoding="latin1")
        images = train["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.array(train["fine_labels"])
    random = np.random.default_rng(options.seed)
    shape = (EXPERIMENT.samples, 32, 32, 3)
    images = random.integers(256, size=shape, dtype=np.uint8)
    return images, random.integers(EXPERIMENT.classes, size=EXPERIMENT.samples)


def build_model(options):
    """ResNet50 that takes uint8 images (N, 32, 32, 3), so that they are scaled on the device."""
    import keras

    images = keras.Input((32, 32, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
    resnet50 = keras.applications.ResNet50(
        weights=None, input_shape=scaled.shape[1:], classes=EXPERIMENT.classes
    )
    model = keras.Model(images, resnet50(scaled))
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss="sparse_categorical_crossentropy",
        jit_compile=options.compile,
    )
    return model


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    from harness.frameworks import tensorflow

    return tensorflow.prepare(options, fetch)


def measure(batch_size: int, options) -> dict:
    """Train ResNet50 at one batch size; returns the measured columns of its row."""
    from harness.frameworks import tensorflow

    device = tensorflow.start(options)
    images, labels = load_data(options)
    dataset = tensorflow.in_memory_batches(images, labels, batch_size)
    return tensorflow.measure_training(
        build_model(options), dataset, len(labels), device, batch_size, options
    )


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
