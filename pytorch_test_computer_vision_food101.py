# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "torch", "torchvision", "datasets", "huggingface_hub", "pillow",
#   "filelock", "pandas", "psutil", "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""How fast does this machine train a ResNet50 on Food101 with PyTorch?

Inside the clock: reading JPEG files, decoding and resizing them to 224x224 in worker processes (one
per CPU core, at most 16), moving a batch to the device, forward and backward pass, Adam's update.
Outside: imports, download, building the model, evaluation (there is none).
Model: torchvision's ResNet50 with 101 classes, untrained. Data: 75,750 photographs of up to 512x512
pixels, 3.8 GB to download and twice that on disk once unpacked. The synthetic twin repeats 512
pictures that cost the same to decode, and reads them from memory.

    python pytorch_test_computer_vision_food101.py --epochs=1 --batch_sizes="32"
"""

import math
import shutil
from pathlib import Path

import harness.data
import harness.machine
import utils
from harness.clock import WARMUP_STEPS

EXPERIMENT = utils.Experiment(
    title="PyTorch, ResNet50, Food101",
    chart="pytorch_cv_resnet50_food101",
    description=__doc__,
    backend="pytorch",
    task="cv",
    dataset="food101",
    model="resnet50",
    input_size=224,
    epochs=3,
    varied=utils.batch_sizes("32, 64, 128"),
    samples=75_750,
    classes=101,
    quick={"batch_sizes": "4"},
    model_flags={"channels_last": False},  # images in NHWC memory order
    extra_columns=("loader_workers",),
)
# Sixteen decode some 25,000 photographs a second, several times what the fastest card trains on;
# more would only take memory from it.
MOST_WORKERS = 16
PREFETCHED_BATCHES = 2  # of each worker
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps what processes share


def food101(options):
    """The training split as a `datasets.Dataset`: columns `image` and `label`.

    Raises:
        DataUnreachable: it is neither in the data directory nor to be had from the Hub.
        UserError: it cannot be put into the data directory, or is damaged or not whole there.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowInvalid

    shards = "data/train-*.parquet"
    folder = harness.data.from_hub("ethz/food101", "dataset", [shards], options.data_dir)
    try:
        # Parquet is unpacked once, into files that can be read at random through the page cache.
        dataset = load_dataset(
            "parquet",
            data_files=sorted(map(str, folder.glob(shards))),
            split="train",
            cache_dir=str(options.data_dir / "datasets"),
        )
    except (ArrowInvalid, DatasetGenerationError, OSError) as error:
        raise harness.data.unreadable(
            "Food101", error, folder.parents[1], options.data_dir
        ) from None
    harness.data.require_samples(
        "Food101", len(dataset), EXPERIMENT.samples, folder, options.data_dir
    )
    return dataset


def synthetic_food101():
    """As many rows as Food101 has, which repeat a few hundred pictures held in memory."""
    import numpy as np
    from datasets import Dataset

    from harness.twins.photographs import jpeg_photographs

    files = jpeg_photographs()
    labels = np.random.default_rng(1).integers(EXPERIMENT.classes, size=len(files))
    images = [{"bytes": file, "path": None} for file in files]
    pictures = Dataset.from_dict({"image": images, "label": labels})
    return pictures.select(np.arange(EXPERIMENT.samples) % len(files))


def load_data(options):
    """Rows of an encoded image and its label, as Arrow tables: nothing is copied or decoded yet."""
    dataset = food101(options) if options.data == "real" else synthetic_food101()
    return dataset.with_format("arrow")


def count_workers() -> int:
    return min(harness.machine.usable_cores(), MOST_WORKERS)


def ring_shape(batch_size: int) -> tuple[int, ...]:
    """Of the memory that workers write into: worker, slot, picture, rows, columns, channels.

    NHWC, the order in which pictures are decoded. One slot for each prefetched batch, and one for
    the batch that is trained on meanwhile.
    """
    size = EXPERIMENT.input_size
    return (count_workers(), PREFETCHED_BATCHES + 1, batch_size, size, size, 3)


def require_shared_memory(batch_size: int) -> None:
    """Raises UserError unless that memory has room for the workers' batches.

    A container has 64 MB of it, unless it is told otherwise.
    """
    needed = math.prod(ring_shape(batch_size))
    if SHARED_MEMORY.exists() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise utils.UserError(
            f"--batch_sizes: batch size {batch_size} needs {needed / 1e6:.0f} MB of shared memory "
            f"for {count_workers()} workers, and {SHARED_MEMORY} has {free / 1e6:.0f} MB; start "
            f"the container with --shm-size={math.ceil(needed / 1e9)}g or --ipc=host"
        )


def make_loader(dataset, batch_size: int, device):
    """Shuffled batches, each read and decoded by one of as many workers as there are CPU cores.

    A worker writes its batches into shared memory that is used again and again: with memory mapped
    anew for each, page faults and file handles cost a tenth of the rate. So a batch holds until the
    next one is asked for.
    """
    import itertools
    from functools import partial

    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    class Batches(DataLoader):
        def __iter__(self):
            for worker, slot, labels in super().__iter__():
                images = ring[worker, slot, : len(labels)]
                labels = torch.tensor(labels)
                if device.type == "cuda":
                    images, labels = images.pin_memory(), labels.pin_memory()
                yield images.permute(0, 3, 1, 2), labels

    require_shared_memory(batch_size)
    ring = torch.empty(ring_shape(batch_size), dtype=torch.uint8).share_memory_()
    return Batches(
        dataset,
        # Whole batches are fetched at once, as one table each.
        batch_size=None,
        sampler=BatchSampler(RandomSampler(dataset), batch_size, drop_last=True),
        num_workers=count_workers(),
        prefetch_factor=PREFETCHED_BATCHES,
        collate_fn=partial(decode_batch, ring, itertools.count()),
        persistent_workers=True,
    )


def decode_batch(ring, turn, rows):
    """Decode an Arrow table's images into the worker's next slot of the ring.

    Returns:
        The worker's number, the slot's number, and the labels.
    """
    from torch.utils.data import get_worker_info

    worker = get_worker_info().id
    slot = next(turn) % ring.shape[1]
    for picture, image in zip(ring[worker, slot], rows["image"], strict=False):
        picture.copy_(decode(image["bytes"].as_buffer()))
    return worker, slot, rows["label"].to_pylist()


def decode(file):
    """A JPEG (by libjpeg-turbo), PNG, GIF or WebP file, grey or not, as uint8 (224, 224, 3)."""
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2.functional import resize

    # From a copy, because a tensor could write to memory that holds the data set.
    encoded = torch.frombuffer(bytearray(file), dtype=torch.uint8)
    image = resize(decode_image(encoded, ImageReadMode.RGB), [EXPERIMENT.input_size] * 2)
    return image.permute(1, 2, 0)


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    from harness.frameworks import pytorch

    require_shared_memory(max(options.batch_sizes))
    return pytorch.prepare(options, food101)


def measure(batch_size: int, options) -> dict:
    """Train ResNet50 at one batch size; returns the measured columns of its row."""
    import torch
    from torchvision.models import resnet50

    from harness.frameworks import pytorch

    device = pytorch.start(options)
    loader = make_loader(load_data(options), batch_size, device)
    model = resnet50(num_classes=EXPERIMENT.classes).to(device)
    fused = pytorch.has_fused_adam(device, options.precision)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    loss_function = torch.nn.CrossEntropyLoss()
    # Starts the workers: they import PyTorch outside the clock, as this process did.
    next(iter(loader), None)
    # The workers fill a queue while the first step compiles; it has to drain before rates count.
    queue = loader.num_workers * loader.prefetch_factor
    row = pytorch.measure_training(
        model, loader, loss_function, optimizer, device, batch_size, options,
        warmup_steps=max(WARMUP_STEPS, queue),
    )  # fmt: skip
    return row | {"loader_workers": loader.num_workers}


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
