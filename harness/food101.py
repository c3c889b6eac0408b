"""Food101's photographs in batches, decoded by worker processes, or a twin that costs the same.

The loader of the experiments in PyTorch and in MLX.
"""

import functools
import math
import shutil
from pathlib import Path

import harness.data
import harness.machine
from harness.process import UserError

SAMPLES = 75_750
NUM_CLASSES = 101
SIDE = 224  # pixels of a picture as networks get it
# Sixteen decode some 25,000 photographs a second, several times what the fastest card trains on;
# more would only take memory from it.
MOST_WORKERS = 16
PREFETCHED_BATCHES = 2  # of each worker
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps what processes share


def fetch(options):
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
    harness.data.require_samples("Food101", len(dataset), SAMPLES, folder, options.data_dir)
    return dataset


def synthetic_food101():
    """As many rows as Food101 has, which repeat a few hundred pictures held in memory."""
    import numpy as np
    from datasets import Dataset

    from harness.twins.photographs import jpeg_photographs

    files = jpeg_photographs()
    labels = np.random.default_rng(1).integers(NUM_CLASSES, size=len(files))
    images = [{"bytes": file, "path": None} for file in files]
    pictures = Dataset.from_dict({"image": images, "label": labels})
    return pictures.select(np.arange(SAMPLES) % len(files))


def load_data(options):
    """Rows of an encoded image and its label, as Arrow tables: nothing is copied or decoded yet."""
    dataset = fetch(options) if options.data == "real" else synthetic_food101()
    return dataset.with_format("arrow")


def count_workers() -> int:
    return min(harness.machine.usable_cores(), MOST_WORKERS)


def ring_shape(batch_size: int) -> tuple[int, ...]:
    """Of the memory that workers write into: worker, slot, picture, rows, columns, channels.

    NHWC, the order in which pictures are decoded. One slot for each prefetched batch, and one for
    the batch that is trained on meanwhile.
    """
    return (count_workers(), PREFETCHED_BATCHES + 1, batch_size, SIDE, SIDE, 3)


def require_shared_memory(batch_size: int) -> None:
    """Raises UserError unless that memory has room for the workers' batches.

    A container has 64 MB of it, unless it is told otherwise.
    """
    needed = math.prod(ring_shape(batch_size))
    if SHARED_MEMORY.exists() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise UserError(
            f"--batch_sizes: batch size {batch_size} needs {needed / 1e6:.0f} MB of shared memory "
            f"for {count_workers()} workers, and {SHARED_MEMORY} has {free / 1e6:.0f} MB; start "
            f"the container with --shm-size={math.ceil(needed / 1e9)}g or --ipc=host"
        )


def make_loader(dataset, batch_size: int, pin_memory: bool = False):
    """Shuffled batches, each read and decoded by one of as many workers as there are CPU cores.

    A worker writes its batches into shared memory that is used again and again: with memory mapped
    anew for each, page faults and file handles cost a tenth of the rate. So a batch holds until the
    next one is asked for.

    Returns:
        A DataLoader that yields uint8 images (N, 3, SIDE, SIDE) and int64 labels (N,).
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
                if pin_memory:
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
    """A JPEG, PNG, GIF or WebP file, grey or not, as uint8 (224, 224, 3)."""
    from torchvision.transforms.v2.functional import resize

    return resize(decoder()(bytes(file)), [SIDE] * 2).permute(1, 2, 0)


@functools.cache
def decoder():
    """The function that decodes a file's bytes to uint8 (3, H, W), by libjpeg-turbo.

    TorchCodec's; torchvision's, which gives the same pixels as fast and is deprecated since 0.29,
    where there is none.
    """
    try:
        from torchcodec.decoders import decode_image
    except (ImportError, RuntimeError):  # not there or before 0.16; made for another PyTorch
        return torchvision_decode
    return decode_image


def torchvision_decode(file: bytes):
    import torch
    from torchvision.io import ImageReadMode, decode_image

    # From a copy, because a tensor could write to the bytes.
    return decode_image(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB)
