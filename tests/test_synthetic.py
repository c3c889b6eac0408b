"""The synthetic photographs have Food101's sizes, and are what a camera's JPEG files are."""

import io
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, JpegImagePlugin

import harness.twins.photographs

FOOD101_BYTES = 50_700  # 3.84 GB of training files / 75,750

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def files():
    return harness.twins.photographs.jpeg_photographs()


def test_files_are_distinct_and_as_large_as_food101s(files):
    assert len(set(files)) == len(files) == harness.twins.photographs.PHOTOGRAPHS
    sizes = [len(file) for file in files]
    assert statistics.mean(sizes) == pytest.approx(FOOD101_BYTES, rel=0.02)
    # Some are half as large, some twice, as it is with photographs.
    tenths = statistics.quantiles(sizes, n=10)
    assert 0.5 < tenths[0] / FOOD101_BYTES < 0.8 and 1.2 < tenths[-1] / FOOD101_BYTES < 1.8


def test_pictures_are_of_full_colour_and_at_most_512_pixels(files):
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    assert {picture.format for picture in pictures} == {"JPEG"}
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert {JpegImagePlugin.get_sampling(picture) for picture in pictures} == {2}  # 4:2:0
    assert {max(picture.size) for picture in pictures} == {512}
    assert {picture.size for picture in pictures} == set(harness.twins.photographs.SIZES)


def test_the_seed_settles_the_pictures():
    first, again, other = (
        harness.twins.photographs.jpeg_photographs(3, seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert not set(first) & set(other)


def test_no_framework_is_imported():
    code = (
        "import sys, harness.twins.photographs; print({'torch', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=ROOT)  # fmt: skip
    assert done.stdout.strip() == "set()"
