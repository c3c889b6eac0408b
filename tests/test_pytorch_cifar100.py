"""CIFAR100's real loading code on a small archive in the true format."""

import argparse
import hashlib
import io
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

import harness.cifar100
import pytorch_test_computer_vision_cifar100 as script
import utils

IMAGES = 64


def cifar100_archive() -> bytes:
    """A cifar-100-python.tar.gz of few images."""
    random = np.random.default_rng(0)
    files = {}
    for name, count in (("train", IMAGES), ("test", 8)):
        files[name] = {
            "filenames": [f"{i}.png" for i in range(count)],
            "fine_labels": [i % 100 for i in range(count)],
            "coarse_labels": [i % 20 for i in range(count)],
            "data": random.integers(256, size=(count, 3072), dtype=np.uint8),
        }
    files["meta"] = {
        "fine_label_names": [f"fine {i}" for i in range(100)],
        "coarse_label_names": [f"coarse {i}" for i in range(20)],
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            data = pickle.dumps(content)
            entry = tarfile.TarInfo(f"cifar-100-python/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the archive over loopback."""
    folder = tmp_path / "served"
    folder.mkdir()
    archive = cifar100_archive()
    (folder / "cifar-100-python.tar.gz").write_bytes(archive)
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            requests.append(self.command)

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    http.requests = requests
    threading.Thread(target=http.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{http.server_port}/cifar-100-python.tar.gz"
    monkeypatch.setattr(harness.cifar100, "URL", url)
    monkeypatch.setattr(harness.cifar100, "SHA256", hashlib.sha256(archive).hexdigest())
    yield http
    http.shutdown()
    http.server_close()


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        data="auto", data_dir=tmp_path / "data", device="cpu", precision="fp32", compile=False,
        channels_last=False, seed=1, thermal_protocol="cold", epochs=1, max_seconds=None,
        num_devices=1, num_machines=1,
    )  # fmt: skip


def test_download_once_then_reuse(server, options):
    assert script.prepare(options)["data"] == "real"
    assert "GET" in server.requests
    server.requests.clear()
    assert script.prepare(options)["data"] == "real"
    assert server.requests == []


def test_images_and_fine_labels_are_those_of_the_archive(server, options):
    options.data = script.prepare(options)["data"]
    dataset = script.load_data(options)
    expected = np.random.default_rng(0).integers(256, size=(IMAGES, 3072), dtype=np.uint8)
    assert torch.equal(dataset.images, torch.from_numpy(expected).reshape(IMAGES, 3, 32, 32))
    assert dataset.labels.tolist() == [i % 100 for i in range(IMAGES)]


def test_broken_checksum_is_an_error_not_a_fallback(server, options, monkeypatch):
    monkeypatch.setattr(harness.cifar100, "SHA256", "0" * 64)
    with pytest.raises(utils.UserError, match="--data_dir.*delete"):
        script.prepare(options)


def test_unreachable_server(server, options, monkeypatch):
    monkeypatch.setattr(harness.cifar100, "URL", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    assert script.prepare(options)["data"] == "synthetic"
    options.data = "real"
    with pytest.raises(utils.UserError, match="--data=real"):
        script.prepare(options)


def test_twin_has_the_real_datas_shape(options):
    options.data = "synthetic"
    dataset = script.load_data(options)
    assert (dataset.images.shape, dataset.images.dtype) == ((50_000, 3, 32, 32), torch.uint8)
    assert (len(dataset), int(dataset.labels.max())) == (50_000, 99)
