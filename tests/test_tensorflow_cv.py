"""CIFAR100 and Food101 with TensorFlow: real loading code on small files in their true formats."""

import argparse
import csv
import hashlib
import io
import json
import pickle
import pickletools
import subprocess
import sys
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from loopback import serve
from PIL import Image
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.utils import Size
from tensorflow_datasets.image_classification import food101 as tfds_food101

import harness.cifar100
import tensorflow_test_computer_vision_cifar100 as cifar100
import tensorflow_test_computer_vision_food101 as food101
import utils
from harness.frameworks import tensorflow

ROOT = Path(__file__).parent.parent
IMAGES = 64


def archive(files: dict[str, bytes]) -> bytes:
    """A .tar.gz of files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.clock.PROBE_SECONDS", 0.1)
    return argparse.Namespace(
        data="auto", data_dir=tmp_path / "data", device="cpu", precision="fp32", compile=False,
        seed=1, thermal_protocol="cold", epochs=1, max_seconds=None,
    )  # fmt: skip


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    with serve(folder) as server:
        server.folder = folder
        yield server


# CIFAR100


def pickled_by_python_2(content: dict) -> bytes:
    """A pickle whose keys are the byte strings of Python 2, as in the published files."""
    data = bytearray(pickle.dumps(content, protocol=2))
    for opcode, argument, position in pickletools.genops(bytes(data)):
        if opcode.name == "BINUNICODE" and argument in content:
            data[position : position + 1] = pickle.BINSTRING
    return bytes(data)


@pytest.fixture
def cifar100_server(served, monkeypatch):
    """Serves a small cifar-100-python.tar.gz where the script is told to find it."""
    files = {}
    for name, count in (("train", IMAGES), ("test", 8)):
        pixels = np.random.default_rng(0).integers(256, size=(count, 3072), dtype=np.uint8)
        content = {
            "fine_labels": [i % 100 for i in range(count)],
            "coarse_labels": [i % 20 for i in range(count)],
            "data": pixels,
        }
        files[f"cifar-100-python/{name}"] = pickled_by_python_2(content)
    data = archive(files)
    (served.folder / "cifar-100-python.tar.gz").write_bytes(data)
    monkeypatch.setattr(harness.cifar100, "URL", f"{served.url}/cifar-100-python.tar.gz")
    monkeypatch.setattr(harness.cifar100, "SHA256", hashlib.sha256(data).hexdigest())
    return served


def test_cifar100_is_downloaded_once_then_reused(cifar100_server, options):
    assert cifar100.prepare(options)["data"] == "real"
    assert "GET" in cifar100_server.requests
    cifar100_server.requests.clear()
    assert cifar100.prepare(options)["data"] == "real"
    assert cifar100_server.requests == []
    assert [path.name for path in options.data_dir.iterdir()] == ["cifar-100-python.tar.gz"]


def test_images_and_fine_labels_are_those_of_the_archive(cifar100_server, options):
    options.data = cifar100.prepare(options)["data"]
    images, labels = cifar100.load_data(options)
    pixels = np.random.default_rng(0).integers(256, size=(IMAGES, 3072), dtype=np.uint8)
    assert np.array_equal(images, pixels.reshape(IMAGES, 3, 32, 32).transpose(0, 2, 3, 1))
    assert labels.tolist() == [i % 100 for i in range(IMAGES)]


def test_broken_checksum_is_an_error_not_a_fallback(cifar100_server, options, monkeypatch):
    monkeypatch.setattr(harness.cifar100, "SHA256", "0" * 64)
    with pytest.raises(utils.UserError, match="cifar-100-python.tar.gz is damaged.*delete"):
        cifar100.prepare(options)


def test_data_directory_that_cannot_be_written_is_an_error(cifar100_server, options, tmp_path):
    (tmp_path / "file").touch()
    options.data_dir = tmp_path / "file"
    with pytest.raises(utils.UserError, match="--data_dir"):
        cifar100.prepare(options)


def test_unreachable_server(cifar100_server, options, monkeypatch):
    monkeypatch.setattr(harness.cifar100, "URL", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    assert cifar100.prepare(options)["data"] == "synthetic"
    options.data = "real"
    with pytest.raises(utils.UserError, match="--data=real"):
        cifar100.prepare(options)


def test_twin_has_cifar100s_shape(options):
    options.data = "synthetic"
    images, labels = cifar100.load_data(options)
    assert (images.shape, images.dtype) == ((50_000, 32, 32, 3), np.uint8)
    assert (len(labels), labels.max()) == (50_000, 99)


# Food101

CLASSES = ("apple_pie", "waffles")


def photograph(brightness: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (512, 384), (brightness,) * 3).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def food101_server(served, monkeypatch):
    """Serves a small food-101.tar.gz where TensorFlow Datasets' builder is told to find it."""
    names = {c: [f"{c}/{1000 + i}" for i in range(3)] for c in CLASSES}
    files = {
        f"food-101/images/{name}.jpg": photograph(50 if c == "apple_pie" else 200)
        for c in CLASSES
        for name in names[c]
    }
    for split, chosen in (("train", slice(2)), ("test", slice(2, 3))):
        listed = {c: names[c][chosen] for c in CLASSES}
        files[f"food-101/meta/{split}.json"] = json.dumps(listed).encode()
    data = archive(files)
    (served.folder / "food-101.tar.gz").write_bytes(data)
    point_builder_at(monkeypatch, f"{served.url}/food-101.tar.gz", data)
    return served


def point_builder_at(monkeypatch, url: str, data: bytes):
    info = UrlInfo(Size(len(data)), hashlib.sha256(data).hexdigest(), "food-101.tar.gz")
    monkeypatch.setattr(tfds_food101, "_BASE_URL", url)
    monkeypatch.setattr(tfds_food101.Food101, "url_infos", {url: info})


def test_food101_is_built_once_then_read_offline(food101_server, options):
    options.data = food101.prepare(options)["data"]
    assert options.data == "real" and "GET" in food101_server.requests
    food101_server.requests.clear()
    assert food101.prepare(options)["data"] == "real"
    photographs = food101.load_data(options)
    assert food101_server.requests == []
    assert len(photographs) == 4
    # Encoded as they were, and under the label that Food101's list of classes gives them.
    names = tfds_food101.tfds.features.ClassLabel(
        names_file=tfds_food101.tfds.core.tfds_path(tfds_food101._LABELS_FNAME)
    )
    found = sorted((names.int2str(int(label)), file.numpy()) for file, label in photographs)
    assert found == sorted(2 * [("apple_pie", photograph(50)), ("waffles", photograph(200))])


def test_food101s_batches_are_decoded_and_resized(food101_server, options):
    options.data = food101.prepare(options)["data"]
    batches = list(food101.make_batches(food101.load_data(options), 2))
    assert [images.shape for images, _ in batches] == [(2, 224, 224, 3)] * 2
    images = np.concatenate([images for images, _ in batches])
    assert images.dtype == np.uint8
    assert sorted(images.mean(axis=(1, 2, 3)).round()) == [50, 50, 200, 200]


def test_damaged_food101_is_an_error_not_a_fallback(food101_server, options, monkeypatch):
    point_builder_at(monkeypatch, f"{food101_server.url}/food-101.tar.gz", b"another")
    with pytest.raises(utils.UserError, match="--data_dir.*delete"):
        food101.prepare(options)


def test_food101_needs_room(food101_server, options, monkeypatch):
    monkeypatch.setattr(food101, "DISK_BYTES", 1e18)
    with pytest.raises(utils.UserError, match="Food101 needs .* GB of disk"):
        food101.prepare(options)


def test_unreachable_food101(options, monkeypatch):
    point_builder_at(monkeypatch, "http://127.0.0.1:9/food-101.tar.gz", b"")
    assert food101.prepare(options)["data"] == "synthetic"
    options.data = "real"
    with pytest.raises(utils.UserError, match="--data=real"):
        food101.prepare(options)


def test_food101s_twin_repeats_photographs_to_its_size(options):
    options.data = "synthetic"
    photographs = food101.load_data(options)
    assert len(photographs) == 75_750
    labels = {int(label) for _, label in photographs.take(512)}
    assert labels <= set(range(101)) and len(labels) > 90
    images, _ = next(iter(food101.make_batches(photographs, 2)))
    assert (images.shape, images.dtype) == ((2, 224, 224, 3), tf.uint8)


@pytest.mark.parametrize(("script", "size", "classes"), [(cifar100, 32, 100), (food101, 224, 101)])
def test_models_take_images_of_8_bits(options, script, size, classes):
    tensorflow.start(options)
    model = script.build_model(options)
    assert model.inputs[0].dtype == "uint8"
    assert model.output_shape == (None, classes)
    assert model.inputs[0].shape == (None, size, size, 3)
    # Of ResNet50 with so many classes, as Keras' documentation and torchvision's count it.
    backbone = 23_587_712
    assert model.count_params() == backbone + (2048 + 1) * classes


# As a user runs them


def run(script: Path, results_dir: Path, *flags: str):
    """One short sweep; returns the process and its row."""
    done = subprocess.run(
        [sys.executable, script, "--data=synthetic", "--max_seconds=1", *flags,
         f"--results_dir={results_dir}"], capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = results_dir.rglob("*_results.csv")
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    return done, row


def check(done, row):
    assert row["status"] == "ok" and float(row["avg_time_per_epoch"]) > 0
    assert float(row["compute_samples_per_second"]) > 0 and float(row["tflops_per_second"]) > 0
    assert row["data"] == "synthetic" and row["framework"].startswith("tensorflow ")
    # TensorFlow's start is silent; the sweep's progress goes to a terminal only.
    assert done.stderr == ""


def test_cifar100_as_a_user_runs_it(tmp_path):
    check(*run(ROOT / "tensorflow_test_computer_vision_cifar100.py", tmp_path, "--batch_sizes=16"))
    (path,) = tmp_path.rglob("*.csv")
    assert path.parent.name == "results_tensorflow_cv"
    assert path.name.endswith("_cifar100_resnet50_32_tensorflow_results.csv")


def test_food101_trains_on_the_twin(options, monkeypatch):
    def small_network(options):
        layers = [
            keras.Input((224, 224, 3), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 7, strides=4),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(101, activation="softmax"),
        ]
        model = keras.Sequential(layers)
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    # In ResNet50's place, which takes a minute to start on a slow machine.
    monkeypatch.setattr(food101, "build_model", small_network)
    options.data, options.max_seconds = "synthetic", 1
    assert food101.prepare(options)["data"] == "synthetic"
    row = food101.measure(8, options)
    assert row["steps_per_epoch"] == 75_750 // 8 and row["extrapolated"]
    assert row["avg_time_per_epoch"] > 0 and row["tflops_per_second"] > 0
    assert row["compute_samples_per_second"] > 0
