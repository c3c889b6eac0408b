"""A network small enough to export in a second, and its files, for tests of ONNX Runtime."""

import pytest
import torch

from harness.models import torch_networks
from harness.models.networks import NETWORKS, Input, Network
from harness.twins import onnx_files


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3, groups=2), torch.nn.Flatten(), torch.nn.Linear(8 * 25, 10),
        )  # fmt: skip

    def forward(self, pixels):
        return self.layers(pixels)


TINY = Network("test", {"pixels": Input((3, 15, 15))}, 2_314, 0, True)
TINY_FLOP = 2 * (8 * 49 * 27 + 8 * 25 * 36 + 10 * 200)


@pytest.fixture(scope="module")
def tiny():
    """Among the networks while a module's tests run; its floating-point operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", TINY)
        patch.setitem(torch_networks.BUILDERS, "tiny", lambda: torch_networks.Part(Tiny()))
        yield TINY_FLOP


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny):
    """A data directory with the tiny network in all precisions."""
    folder = tmp_path_factory.mktemp("data")
    onnx_files.ensure_files(["tiny"], list(onnx_files.PRECISIONS), folder)
    return folder
