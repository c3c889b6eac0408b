"""Food101's real loading code on a tiny repository of the true form, its twin, and training.

What talks to the Hub runs in a process of its own, because huggingface_hub reads its address at
import.
"""

import argparse
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image

import harness.machine
import harness.twins.photographs
import pytorch_test_computer_vision_food101 as script
from harness import food101
from harness.clock import Clock

ROOT = Path(script.__file__).parent
CPU = torch.device("cpu")
ROWS = 48


def picture(mode: str, level: int, file_format: str) -> bytes:
    """A file of one grey level."""
    grey = Image.new("L", (60, 40), level)
    file = io.BytesIO()
    grey.convert(mode).save(file, file_format)
    return file.getvalue()


def shard(rows: list[tuple[bytes, int]]) -> bytes:
    """A parquet file as `ethz/food101` has them: images as bytes and path, and labels."""
    images = [{"bytes": file, "path": f"{i}.jpg"} for i, (file, _) in enumerate(rows)]
    features = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table({"image": images, "label": [label for _, label in rows]}, schema)
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


@pytest.fixture
def tiny_food101(hub):
    """The loopback Hub with two shards of pictures that are dark or bright, as their label says."""
    kinds = [("RGB", "JPEG"), ("L", "JPEG"), ("RGBA", "PNG")]
    rows = [(picture(kinds[i % 3][0], 40 + 170 * (i % 2), kinds[i % 3][1]), i % 2)
            for i in range(ROWS)]  # fmt: skip
    files = {f"data/train-0000{i}-of-00002.parquet": shard(rows[i::2]) for i in range(2)}
    hub.add("dataset", "ethz/food101", {**files, "data/validation-0.parquet": b"not wanted"})
    return hub


def run(code: str, data_dir: Path) -> list[str]:
    """The lines that `code` prints, which has the script and the command line's `options`."""
    head = """
import argparse, json, sys
from pathlib import Path
import pytorch_test_computer_vision_food101 as script
import utils, harness.data
from harness import food101
food101.SAMPLES = 48
options = argparse.Namespace(
    data="auto", data_dir=Path(sys.argv[1]), device="cpu", precision="fp32", compile=False,
    channels_last=False, seed=1, thermal_protocol="cold", epochs=1,
    max_seconds=None, batch_sizes=[8], num_devices=1, num_machines=1,
)
"""
    done = subprocess.run(
        [sys.executable, "-c", head + code, str(data_dir)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


TRAIN = """
import torch, torchvision, harness.clock
harness.clock.PROBE_SECONDS = 0.1
torchvision.models.resnet50 = lambda num_classes: torch.nn.Sequential(
    torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(147, num_classes)
)
options.data = script.prepare(options)["data"]
print(options.data)
for options.epochs in (1, 12):
    print(json.dumps(script.measure(8, options)))
"""


def test_downloaded_once_trained_on_and_reused_offline(tiny_food101, tmp_path):
    data, first, later = run(TRAIN, tmp_path)
    first, later = json.loads(first), json.loads(later)
    assert data == "real"
    assert later["steps_per_epoch"] == ROWS / 8
    assert later["loader_workers"] == harness.machine.usable_cores()
    assert later["train_loss"] < first["train_loss"] / 2
    assert not (tmp_path / "hf_home" / "datasets").exists()  # unpacked in the data directory
    downloads = [request for request in tiny_food101.requests if "/cdn/" in request]
    assert len(downloads) == 2
    tiny_food101.requests.clear()
    offline = 'options.data = "real"\nprint(food101.load_data(options).num_rows)'
    assert run(offline, tmp_path) == [str(ROWS)]
    assert tiny_food101.requests == []


CHOOSE = """
for data in ("auto", "real"):
    try:
        print(harness.data.choose_data(data, lambda: food101.fetch(options)))
    except utils.UserError as error:
        print(error)
"""


@pytest.mark.parametrize("fault", ["500", "cut", "unreachable"])
def test_a_hub_that_fails_means_the_twin_or_an_error(tiny_food101, tmp_path, monkeypatch, fault):
    tiny_food101.fault = fault
    if fault == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said, chosen, error = run(CHOOSE, tmp_path)
    assert "synthetic data that costs the same work" in said
    assert chosen == "synthetic"
    assert error.startswith("--data=real: ") and "food101" in error


def test_damaged_parquet_is_an_error_that_names_what_to_delete(tiny_food101, tmp_path):
    assert run(CHOOSE, tmp_path) == ["real", "real"]
    # In the first shard it is found while the schema is read, in the second while unpacking.
    for number in (0, 1):
        (damaged,) = tmp_path.glob(f"hub/*/snapshots/*/data/train-0000{number}-*")
        os.truncate(damaged, 1000)
        lines = run(CHOOSE, tmp_path)
        assert len(lines) == 2  # one under auto, too: no silent fallback
        assert all(line.startswith(f"--data_dir={tmp_path}: ") for line in lines)
        shutil.rmtree(re.search("delete (.+) and try again", lines[0])[1])
        assert run(CHOOSE, tmp_path) == ["real", "real"]


def test_a_download_that_is_not_whole_is_an_error_whose_remedy_works(tiny_food101, tmp_path):
    assert run(CHOOSE, tmp_path) == ["real", "real"]
    (missing,) = tmp_path.glob("hub/*/snapshots/*/data/train-00001-*")
    missing.unlink()
    # Older clients of the Hub keep no list of a repository's files, and take any part for all.
    for listed in tmp_path.glob("hub/*/trees"):
        shutil.rmtree(listed)
    tiny_food101.requests.clear()
    (line, again) = run(CHOOSE, tmp_path)
    assert line == again and "24 samples there instead of 48" in line
    shutil.rmtree(re.search("delete (.+) and try again", line)[1])
    assert run(CHOOSE, tmp_path) == ["real", "real"]
    # What was there is not downloaded again.
    assert len([request for request in tiny_food101.requests if "/cdn/" in request]) <= 1


@pytest.fixture(params=["torchcodec", "torchvision"])
def decoder(request, monkeypatch):
    """The one in use, and the one that older versions have to do with."""
    if request.param == "torchvision":
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    food101.decoder.cache_clear()
    assert food101.decoder().__module__.startswith("torchcodec") == (request.param == "torchcodec")
    yield
    food101.decoder.cache_clear()


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_any_kind_of_image_becomes_three_channels(decoder):
    kinds = [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"),
             ("P", "PNG"), ("P", "GIF")]  # fmt: skip
    for mode, kind in kinds:
        image = food101.decode(picture(mode, 100, kind))
        assert (image.shape, image.dtype) == ((224, 224, 3), torch.uint8)
        assert (image.int() - 100).abs().max() <= 2


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_channels_rows_and_columns_keep_their_place(decoder):
    levels = np.zeros((224, 224, 3), np.uint8)
    levels[:100, :, 0] = 200  # red above, blue to the left
    levels[:, :50, 2] = 150
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    assert np.array_equal(food101.decode(file.getvalue()).numpy(), levels)


@pytest.fixture
def twin(monkeypatch):
    monkeypatch.setattr(harness.twins.photographs, "PHOTOGRAPHS", 16)
    files = harness.twins.photographs.jpeg_photographs(16)
    monkeypatch.setattr(harness.twins.photographs, "jpeg_photographs", lambda: files)
    return food101.load_data(argparse.Namespace(data="synthetic"))


def test_twin_has_the_real_datas_form(twin):
    assert twin.num_rows == 75_750
    assert twin.column_names == ["image", "label"]
    first, *_, last = twin[[75_749 % 16, *range(16), 75_749]].to_pylist()
    assert set(last["image"]) == {"bytes", "path"}
    assert last["image"]["bytes"] == first["image"]["bytes"]
    assert all(0 <= label < food101.NUM_CLASSES for label in twin[:16]["label"].to_pylist())


def test_loader_yields_every_row_once_in_another_order_beside_its_label():
    levels = list(range(72))
    images = [{"bytes": picture("L", 3 * level, "PNG"), "path": None} for level in levels]
    rows = Dataset.from_dict({"image": images, "label": levels}).with_format("arrow")
    loader = food101.make_loader(rows, 4)
    next(iter(loader))  # an epoch that is broken off leaves nothing behind
    for _ in range(2):
        seen = []
        for pictures, labels in loader:
            time.sleep(0.02)  # the workers are ahead, as far as they may be
            assert pictures.shape == (len(labels), 3, 224, 224)
            assert torch.equal(pictures, (3 * labels).byte().view(-1, 1, 1, 1).expand_as(pictures))
            seen += labels.tolist()
        assert sorted(seen) == levels and seen != levels
        assert len(labels) == 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create 5 worker:UserWarning")
def test_the_rate_leaves_out_what_the_workers_had_queued(twin, monkeypatch):
    monkeypatch.setattr(harness.machine, "usable_cores", lambda: 5)
    monkeypatch.setattr(food101, "load_data", lambda options: twin)
    passed = {}
    monkeypatch.setattr(
        "harness.frameworks.training.measure_training", lambda *_, **kw: passed.update(kw) or {}
    )
    options = argparse.Namespace(device="cpu", seed=1, precision="fp32", channels_last=False)
    assert script.measure(4, options) == {"loader_workers": 5}
    assert passed == {"warmup_steps": 10}


def test_clock_leaves_out_the_warmup_steps_it_is_told():
    seconds = iter([5.0] + [0.1] * 10 + [1.0] * 89)
    time = 0.0
    clock = Clock(8, 800, 1, lambda: None, warmup_steps=10, now=lambda: time)
    clock.start()
    for _ in range(100):
        time += next(seconds)
        clock.step(8)
    clock.stop()
    assert clock.measurement()["samples_per_second"] == pytest.approx(8)


def test_the_script_trains_on_the_twin(tmp_path):
    done = subprocess.run(
        [sys.executable, script.__file__, "--data=synthetic", "--batch_sizes=1", "--max_seconds=1",
         "--epochs=1", "--device=cpu", "--machine_name=here", f"--data_dir={tmp_path / 'data'}",
         f"--results_dir={tmp_path}"], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = tmp_path / "results_pytorch_cv" / "here_food101_resnet50_224_pytorch_results.csv"
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["data"], row["steps_per_epoch"]) == ("ok", "synthetic", "75750")
    assert float(row["samples_per_second"]) > 0
    assert int(row["loader_workers"]) == harness.machine.usable_cores()
    # ResNet50 at 224x224: 4.1e9 multiply-adds forward, about three times that with both gradients.
    flops = 1e12 * float(row["tflops_per_second"]) / float(row["samples_per_second"])
    assert flops == pytest.approx(3 * 2 * 4.1e9, rel=0.1)


def test_the_defaults_are_the_original_experiments():
    experiment = script.EXPERIMENT
    (sizes,) = experiment.varied
    assert (experiment.epochs, sizes.default) == (3, "32, 64, 128")
    assert (experiment.samples, experiment.input_size) == (75_750, 224)


def test_many_cores_start_no_more_workers_than_a_device_can_eat(monkeypatch):
    monkeypatch.setattr(harness.machine, "usable_cores", lambda: 192)
    assert food101.ring_shape(128) == (16, 3, 128, 224, 224, 3)


SMALL_SHARED_MEMORY = """
mount -t tmpfs -o size=64m none /dev/shm
exec "$@"
"""


@pytest.mark.skipif(os.getuid() != 0 or sys.platform != "linux", reason="mounts /dev/shm")
@pytest.mark.parametrize("flags", [["--batch_sizes=4,128"], ["--batch_sizes=512"]])
def test_a_containers_shared_memory_is_checked_before_the_first_minute(tmp_path, flags):
    """In Docker's 64 MB: one line that says what to do, instead of a page when batch 128 comes."""
    command = [sys.executable, script.__file__, "--data=synthetic", *flags, "--device=cpu",
               f"--results_dir={tmp_path}"]  # fmt: skip
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", SMALL_SHARED_MEMORY, "sh", *command],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "shared memory" in line
    assert "--shm-size=" in line and "--ipc=host" in line
    assert list(tmp_path.rglob("*.csv")) == []


def test_enough_shared_memory_is_enough(monkeypatch):
    monkeypatch.setattr(harness.machine, "usable_cores", lambda: 2)
    food101.require_shared_memory(4)
    with pytest.raises(script.utils.UserError, match="--batch_sizes: batch size 99999999"):
        food101.require_shared_memory(99_999_999)
