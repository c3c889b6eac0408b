"""Synthetic photographs: JPEG files that cost what Food101's cost. Imports no ML framework."""

import io

import numpy as np
from PIL import Image

PHOTOGRAPHS = 512  # distinct pictures; a data set repeats them
# (width, height) and share: the longest side of every Food101 image is 512 pixels at most.
SIZES = {(512, 512): 0.6, (512, 384): 0.2, (384, 512): 0.1, (512, 340): 0.05, (512, 288): 0.05}
QUALITY = 85
DETAIL = 21.3  # median standard deviation of brightness in grey levels: gives the 50.7 KB
CANVASES = 16
CANVAS_SIDE = 768


def jpeg_photographs(count: int = PHOTOGRAPHS, seed: int = 1) -> list[bytes]:
    """Distinct JPEG files as large, and as costly to decode, as the photographs of Food101.

    50.7 KB on average, because 75,750 training files take 3.84 GB; 4:2:0 chroma, the usual one.
    The pictures are cut, each with its own contrast, from noise whose amplitude falls as f**-1.2,
    the mean of natural photographs (Tolhurst, Tadmor and Chao, "Amplitude spectra of natural
    images", Ophthalmic and Physiological Optics 12, 1992); colour varies less and more smoothly.
    Checked by selfchecks/food101.py: two real photographs, encoded with the same size and quality,
    take as long to decode as pictures of this function with as many bits per pixel.

    Args:
        count: how many files.
        seed: of the random pictures; the same seed gives the same pictures.
    """
    random = np.random.default_rng(seed)
    canvases = [canvas(random) for _ in range(min(count, CANVASES))]
    return [photograph(canvases[i % CANVASES], random) for i in range(count)]


def canvas(random: np.random.Generator) -> np.ndarray:
    """Y, Cb and Cr (side, side, 3) around 0 of a large picture; Y has standard deviation 1."""
    brightness = noise(random, 1.2)
    colours = [0.35 * noise(random, 1.5) for _ in range(2)]
    return np.stack([brightness, *colours], axis=-1)


def noise(random: np.random.Generator, exponent: float) -> np.ndarray:
    """Noise (side, side) of mean 0 and standard deviation 1; amplitude falls as 1/f**exponent."""
    side = CANVAS_SIDE
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf  # no energy in the mean
    white = np.fft.rfft2(random.standard_normal((side, side), dtype=np.float32))
    picture = np.fft.irfft2(white / frequency.astype(np.float32) ** exponent, (side, side))
    return picture / picture.std()


def photograph(canvas: np.ndarray, random: np.random.Generator) -> bytes:
    """A JPEG file of some part of `canvas`."""
    width, height = list(SIZES)[random.choice(len(SIZES), p=list(SIZES.values()))]
    top, left = random.integers(CANVAS_SIDE - height), random.integers(CANVAS_SIDE - width)
    part = canvas[top : top + height, left : left + width]
    if random.random() < 0.5:
        part = part[:, ::-1]
    contrast = DETAIL * random.lognormal(sigma=0.4)
    levels = (part * contrast + 128).clip(0, 255).astype(np.uint8)
    picture = Image.frombytes("YCbCr", (width, height), levels.tobytes())
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()
