"""What Food101's input pipeline delivers without a model: ratios of things measured in one run.

Share: pictures per second of the scripts' loader, over the number of its workers times the rate of
decoding and resizing alone in one thread. Decoding: time per pixel of the synthetic photographs,
over that of two real ones of the same quality and about as many bits per pixel.
"""

import argparse
import contextlib
import io
import statistics

import PIL.Image
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize

import harness.twins.photographs
from harness import food101
from selfchecks.pairs import interleaved_ratios

BATCH_SIZE = 32
SIDE = food101.SIDE


def synthetic_rows(count: int):
    """The first `count` rows of the synthetic twin."""
    return food101.load_data(argparse.Namespace(data="synthetic")).select(range(count))


def our_loader(rows) -> DataLoader:
    return food101.make_loader(rows, BATCH_SIZE)


def consume(loader) -> None:
    """One pass; the workers persist, so that only the first one starts them."""
    for _ in loader:
        pass


def pipeline_shares(rows, loader: DataLoader, pairs: int = 9) -> list[float]:
    """Of interleaved pairs, rate of `rows`' loader over (its workers x that of one thread).

    The thread only decodes and resizes.
    """
    files = [bytes(image["bytes"].as_buffer()) for image in rows[:]["image"]]
    decode = food101.decoder()

    def decode_and_resize():
        for file in files:
            resize(decode(file), [SIDE, SIDE])

    with one_thread():
        ratios = interleaved_ratios(lambda: consume(loader), decode_and_resize, pairs)
    return [ratio / loader.num_workers for ratio in ratios]


def decoding_ratios(pairs: int = 15) -> list[float]:
    """Of interleaved pairs, decoding time per pixel of synthetic over two real photographs."""
    real = real_photographs()
    wanted = statistics.mean(map(bits_per_pixel, real))
    alike = sorted(
        harness.twins.photographs.jpeg_photographs(),
        key=lambda file: abs(bits_per_pixel(file) - wanted),
    )[:16]

    def decode(files):
        return lambda: [food101.decoder()(file) for file in files]

    with one_thread():
        # As many pictures on both sides.
        faster = interleaved_ratios(decode(alike), decode(real * (len(alike) // 2)), pairs)
    larger = sum(map(pixels, real)) / 2 / (sum(map(pixels, alike)) / len(alike))
    return [larger / ratio for ratio in faster]


def real_photographs() -> list[bytes]:
    """scikit-learn's two sample photographs, as Food101 would hold them."""
    from sklearn.datasets import load_sample_images

    files = []
    for levels in load_sample_images().images:
        picture = PIL.Image.fromarray(levels)
        picture.thumbnail((512, 512), PIL.Image.Resampling.LANCZOS)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=harness.twins.photographs.QUALITY, subsampling="4:2:0")
        files.append(file.getvalue())
    return files


def pixels(file: bytes) -> int:
    width, height = PIL.Image.open(io.BytesIO(file)).size
    return width * height


def bits_per_pixel(file: bytes) -> float:
    return 8 * len(file) / pixels(file)


@contextlib.contextmanager
def one_thread():
    """Within it, PyTorch computes in one thread, as a loader's worker does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
