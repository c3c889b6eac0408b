# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "mlx>=0.32; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "mlx[cpu]>=0.32; sys_platform == 'linux'",
#   "numpy", "filelock", "nvidia-ml-py>=12.535", "packaging", "pandas", "psutil", "py-cpuinfo",
#   "scipy", "tqdm",
# ]
# ///
"""How fast does this machine train a ResNet50 on CIFAR100 with MLX?

Inside the clock: gathering a batch from memory, forward and backward pass, Adam's update, in one
compiled step (--no-compile: without). Outside: imports, download, building the model, evaluation
(there is none).
Model: torchvision's ResNet50 in mlx.nn with 100 classes, untrained. Data: 50,000 images of 32x32x3.

    python mlx_test_computer_vision_cifar100.py --epochs=1 --batch_sizes="32"
"""

import utils
from harness import cifar100

EXPERIMENT = utils.Experiment(
    title="MLX, ResNet50, CIFAR100",
    place=90,
    chart="mlx_cv_resnet50_cifar100",
    description=__doc__,
    backend="mlx",
    task="cv",
    dataset="cifar100",
    model="resnet50",
    input_size=32,
    epochs=5,
    compile=True,  # the usual way to train in MLX
    varied=utils.batch_sizes("16, 32, 64, 128, 256, 512, 1024"),
    samples=cifar100.SAMPLES,
    classes=cifar100.NUM_CLASSES,
    quick={"batch_sizes": "16"},
)


def loss_function(model, images, labels):
    """Cross entropy of uint8 images (N, 32, 32, 3), which are scaled on the device."""
    import mlx.core as mx

    from harness.frameworks import mlx

    return mlx.cross_entropy(model(images.astype(mx.float32) / 127.5 - 1), labels)


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    from harness.frameworks import mlx

    return mlx.prepare(options, cifar100.fetch)


def measure(batch_size: int, options) -> dict:
    """Train ResNet50 at one batch size; returns the measured columns of its row."""
    import mlx.optimizers as optim

    from harness.frameworks import mlx
    from harness.frameworks.training import measure_training
    from harness.models.resnet50_mlx import ResNet50

    device = mlx.start(options)
    images, labels = cifar100.load_data(options)
    batches = mlx.in_memory_batches(images, labels, batch_size)
    model = ResNet50(cifar100.NUM_CLASSES)
    # The Adam of PyTorch and Keras; in MLX its bias correction is off by default.
    optimizer = optim.Adam(learning_rate=1e-3, bias_correction=True)
    training = mlx.Training(model, loss_function, optimizer, batches, device, options)
    return measure_training(training, len(labels), batch_size, options)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
