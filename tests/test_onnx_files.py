"""Networks for ONNX Runtime: what they are, and their files: right, whole, made once."""

import json

import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models as vision

from harness.frameworks import onnx as protocol
from harness.models import torch_networks
from harness.models.networks import NETWORKS
from harness.process import UserError
from harness.twins import onnx_files

pytest_plugins = ["tiny_network"]
CPU = protocol.UNITS["cpu"]
NAMES = list(NETWORKS)


# Facts


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_operations_are_the_architecture_s(name):
    network = NETWORKS[name]
    with torch.device("meta"):
        model = torch_networks.BUILDERS[name]().eval()
        inputs = torch_networks.example(network.inputs, 1)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*inputs)
    assert sum(p.numel() for p in model.parameters()) == network.parameters
    assert counter.get_total_flops() / 1e9 == pytest.approx(network.gflop, rel=1e-3)


@pytest.mark.parametrize(
    "name, weights",
    [
        ("mobilenetv3", vision.MobileNet_V3_Large_Weights.DEFAULT),
        ("resnet50", vision.ResNet50_Weights.DEFAULT),
        ("ssdlite320", vision.detection.SSDLite320_MobileNet_V3_Large_Weights.DEFAULT),
        ("deeplabv3", vision.segmentation.DeepLabV3_MobileNet_V3_Large_Weights.DEFAULT),
    ],
)
def test_facts_are_those_that_torchvision_publishes(name, weights):
    """Its operations are multiplications with their addition, in 1e9."""
    assert 2 * weights.meta["_ops"] == pytest.approx(NETWORKS[name].gflop, rel=0.01)
    assert weights.meta["num_params"] == pytest.approx(NETWORKS[name].parameters, rel=0.001)


# Files


def test_a_file_computes_what_the_network_does(exported):
    session = protocol.make_session(onnx_files.file_path(exported, "tiny", "fp32"), CPU, 3)
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("pixels", [3, 3, 15, 15])]
    inputs = onnx_files.random_inputs("tiny", 3, seed=0)
    answer = session.run(None, inputs)[0]
    model = torch_networks.random_network("tiny")
    with torch.no_grad():
        expected = model(torch.from_numpy(inputs["pixels"])).numpy()
    assert answer == pytest.approx(expected, abs=1e-4)
    # Neither faded nor exploded, or no precision could be judged.
    assert 0.1 < answer.std() < 10


def test_precisions_are_what_they_are_called(exported):
    def kinds(precision):
        graph = onnx.load(onnx_files.file_path(exported, "tiny", precision)).graph
        weights = {onnx.TensorProto.DataType.Name(w.data_type) for w in graph.initializer}
        return {node.op_type for node in graph.node}, weights

    assert "FLOAT16" in kinds("fp16")[1] and "FLOAT" not in kinds("fp16")[1]
    operations, weights = kinds("int8")
    assert "QuantizeLinear" in operations and "INT8" in weights


@pytest.fixture
def counted(monkeypatch, tiny):
    """Exports that write a few bytes, and are counted."""
    made = []

    def export(name, path):
        made.append(name)
        path.write_bytes(b"network")
        return "torch 0"

    monkeypatch.setattr(onnx_files, "export", export)
    return made


def test_files_are_made_once(counted, tmp_path):
    for _ in range(2):
        onnx_files.ensure_files(["tiny"], ["fp32"], tmp_path)
    assert counted == ["tiny"]


@pytest.mark.parametrize("spoil", ["bytes", "version", "no stamp", "torn stamp"])
def test_damaged_and_stale_files_are_made_anew(counted, tmp_path, spoil):
    onnx_files.ensure_files(["tiny"], ["fp32"], tmp_path)
    path = onnx_files.file_path(tmp_path, "tiny", "fp32")
    stamp = onnx_files.stamp_path(path)
    if spoil == "bytes":
        path.write_bytes(b"netw0rk")
    elif spoil == "version":
        stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"version": 0}))
    elif spoil == "no stamp":
        stamp.unlink()
    else:
        stamp.write_text(stamp.read_text()[:9])
    onnx_files.ensure_files(["tiny"], ["fp32"], tmp_path)
    assert counted == ["tiny", "tiny"]
    assert path.read_bytes() == b"network" and onnx_files.is_whole(path)


def test_what_was_made_from_an_older_file_is_made_anew(counted, tmp_path, monkeypatch):
    halves = []

    def to_half(name, source, path):
        halves.append(source.read_bytes())
        path.write_bytes(b"half")

    monkeypatch.setattr(onnx_files, "to_half", to_half)
    onnx_files.ensure_files(["tiny"], ["fp16"], tmp_path)
    onnx_files.file_path(tmp_path, "tiny", "fp32").write_bytes(b"damaged")
    onnx_files.ensure_files(["tiny"], ["fp16"], tmp_path)
    assert halves == [b"network", b"network"]


def test_an_interrupted_export_leaves_nothing_that_looks_whole(counted, tmp_path, monkeypatch):
    whole = onnx_files.export

    def interrupted(name, path):
        whole(name, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_files, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        onnx_files.ensure_files(["tiny"], ["fp32"], tmp_path)
    assert [p.name for p in (tmp_path / "onnx").iterdir() if p.suffix != ".lock"] == []
    monkeypatch.setattr(onnx_files, "export", whole)
    onnx_files.ensure_files(["tiny"], ["fp32"], tmp_path)
    assert onnx_files.is_whole(onnx_files.file_path(tmp_path, "tiny", "fp32"))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(name, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_files, "export", full)
    with pytest.raises(UserError, match="--data_dir=.*No space left on device"):
        onnx_files.ensure_files(["tiny"], ["fp32"], tmp_path)
