# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "mlx>=0.32; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "mlx[cpu]>=0.32; sys_platform == 'linux'",
#   "torch>=2.11", "torchvision", "torchcodec", "datasets", "huggingface_hub", "pillow",
#   "numpy", "filelock", "nvidia-ml-py>=12.535", "packaging", "pandas", "psutil", "py-cpuinfo",
#   "scipy", "tqdm",
# ]
# ///
"""How fast does this machine train a ResNet50 on Food101 with MLX?

Inside the clock: reading JPEG files, decoding and resizing them to 224x224 in worker processes (one
per CPU core; the PyTorch script's loader), copying a batch to MLX, forward and backward pass and
Adam's update in one compiled step (--no-compile: without). Outside: imports, download, building the
model, evaluation (there is none).
Model: torchvision's ResNet50 in mlx.nn with 101 classes, untrained. Data: 75,750 photographs of up
to 512x512 pixels, 3.8 GB to download and twice that on disk once unpacked, or the synthetic twin of
the PyTorch script.

    python mlx_test_computer_vision_food101.py --epochs=1 --batch_sizes="32"
"""

import utils
from harness import food101
from harness.clock import WARMUP_STEPS

EXPERIMENT = utils.Experiment(
    title="MLX, ResNet50, Food101",
    place=100,
    chart="mlx_cv_resnet50_food101",
    description=__doc__,
    backend="mlx",
    task="cv",
    dataset="food101",
    model="resnet50",
    input_size=food101.SIDE,
    epochs=3,
    compile=True,  # the usual way to train in MLX
    varied=utils.batch_sizes("32, 64, 128"),
    samples=food101.SAMPLES,
    classes=food101.NUM_CLASSES,
    quick={"batch_sizes": "1"},
    extra_columns=("loader_workers",),
)


def loss_function(model, images, labels):
    """Cross entropy of uint8 images (N, 224, 224, 3), which are scaled on the device."""
    import mlx.core as mx

    from harness.frameworks import mlx

    return mlx.cross_entropy(model(images.astype(mx.float32) / 127.5 - 1), labels)


def mlx_batches(loader):
    """One epoch of the loader's batches as MLX arrays: images (N, 224, 224, 3) and labels (N,)."""
    import mlx.core as mx

    for images, labels in loader:
        # In the order in which they lie in memory, so that it is one plain copy.
        yield mx.array(images.permute(0, 2, 3, 1).numpy()), mx.array(labels.numpy())


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    from harness.frameworks import mlx

    food101.require_shared_memory(max(options.batch_sizes))
    return mlx.prepare(options, food101.fetch)


def measure(batch_size: int, options) -> dict:
    """Train ResNet50 at one batch size; returns the measured columns of its row."""
    import mlx.optimizers as optim

    from harness.frameworks import mlx
    from harness.frameworks.training import measure_training
    from harness.models.resnet50_mlx import ResNet50

    device = mlx.start(options)
    loader = food101.make_loader(food101.load_data(options), batch_size)
    # The workers fill a queue while the first step compiles; it has to drain before rates count.
    queue = loader.num_workers * loader.prefetch_factor
    # The Adam of PyTorch and Keras; in MLX its bias correction is off by default.
    optimizer = optim.Adam(learning_rate=1e-3, bias_correction=True)
    model = ResNet50(food101.NUM_CLASSES)
    training = mlx.Training(
        model, loss_function, optimizer, lambda: mlx_batches(loader), device, options
    )
    row = measure_training(
        training, food101.SAMPLES, batch_size, options, warmup_steps=max(WARMUP_STEPS, queue)
    )
    return row | {"loader_workers": loader.num_workers}


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
