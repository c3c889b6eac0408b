"""What NVIDIA's driver says; one card, one name, whichever framework tells its memory."""

import ctypes
import sys

import fake_nvml
import pynvml
import pytest
from fake_nvml import Card

import harness.nvidia
from harness.nvidia import card_bytes, card_name, gigabytes_sold, has_bf16, nvidia_card

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "by_torch", "by_driver", "expected"),
    [
        # GiB as PyTorch reports them, and MiB as NVML counts them.
        ("NVIDIA H200", 139.8, 143_771, "NVIDIA H200 141GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 94.97, 97_887,
         "NVIDIA RTX PRO 6000 Blackwell Workstation Edition 96GB"),
        ("NVIDIA H100 NVL", 93.1, 95_830, "NVIDIA H100 NVL 94GB"),
        ("Tesla T4", 14.56, 15_360, "Tesla T4 16GB"),
        ("NVIDIA A10G", 21.98, 23_028, "NVIDIA A10G 24GB"),
        ("NVIDIA L4", 22.03, 23_034, "NVIDIA L4 24GB"),
        ("NVIDIA L40S", 44.42, 46_068, "NVIDIA L40S 48GB"),
        ("NVIDIA TITAN RTX", 23.64, 24_576, "NVIDIA TITAN RTX 24GB"),
        ("NVIDIA GeForce RTX 2080 Ti", 10.57, 11_264, "NVIDIA GeForce RTX 2080 Ti 11GB"),
        ("NVIDIA B200", 178.4, 183_359, "NVIDIA B200 180GB"),
        # It shares the machine's memory, of which llama.cpp and PyTorch saw different parts.
        ("NVIDIA GB10", 119.7, 122_502, "NVIDIA GB10 128GB"),
        # In the name already.
        ("NVIDIA A100-SXM4-40GB", 39.39, 40_960, "NVIDIA A100-SXM4-40GB"),
        ("NVIDIA H100 80GB HBM3", 79.18, 81_559, "NVIDIA H100 80GB HBM3"),
        ("Tesla V100-SXM2-16GB", 15.77, 16_384, "Tesla V100-SXM2-16GB"),
    ],
)  # fmt: skip
def test_a_card_has_one_name(name, by_torch, by_driver, expected):
    assert card_name(name, int(by_torch * GIB)) == card_name(name, by_driver * 2**20) == expected


def test_a_slice_is_not_the_whole_card():
    whole = card_name("NVIDIA A100-SXM4-40GB", int(39.4 * GIB))
    named, unnamed = "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A100-SXM4-40GB"
    assert card_name(named, int(4.75 * GIB)) == named != whole
    assert card_name(unnamed, int(4.75 * GIB)) == "NVIDIA A100-SXM4-40GB 5GB" != whole


def test_unknown_memory_is_left_out_and_a_size_that_is_new_rounded_up():
    assert card_name("NVIDIA TITAN RTX", None) == "NVIDIA TITAN RTX"
    assert gigabytes_sold(383 * GIB + 1) == 384


class Driver:
    """A libcuda with one device, of 24 GiB."""

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0 if index == 0 else 101  # CUDA_ERROR_INVALID_DEVICE

    def cuDeviceTotalMem_v2(self, size, device):
        size._obj.value = 24 * GIB
        return 0


def test_memory_is_the_drivers(monkeypatch):
    monkeypatch.setattr(harness.nvidia.ctypes, "CDLL", lambda name: Driver())
    assert (card_bytes(0), card_bytes(1)) == (24 * GIB, None)


def test_memory_without_a_driver_is_unknown(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert card_bytes(0) is None


@pytest.mark.parametrize(
    ("capability", "native"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((12, 1), True)]
)
def test_bf16_is_computed_from_ampere_on(capability, native):
    assert has_bf16(capability) is native


@pytest.mark.parametrize(
    "start", [pynvml.NVMLError_LibraryNotFound(), pynvml.NVMLError_DriverNotLoaded()], ids=str
)
def test_without_a_driver_all_is_unknown_after_one_quiet_try(start, monkeypatch, capfd):
    starts = fake_nvml.install(monkeypatch, Card(), start=start)
    assert harness.nvidia.driver_version() is None and harness.nvidia.has_card() is False
    assert harness.nvidia.card_of(0) is None and nvidia_card(0) is None
    assert len(starts) == 1 and capfd.readouterr() == ("", "")


def test_nothing_is_started_where_nothing_is_asked(monkeypatch):
    starts = fake_nvml.install(monkeypatch, Card())
    assert harness.nvidia.thermal_state(None) is harness.nvidia.power_limit(None) is None
    assert starts == []


@pytest.mark.parametrize(
    ("reasons", "state"),
    [
        (0x0, "nominal"),
        (0x1, "nominal"),  # idle
        (0x24, "power cap, software thermal slowdown"),
        (None, None),
    ],
)
def test_why_a_card_is_held_back(reasons, state, monkeypatch):
    fake_nvml.install(monkeypatch, Card(reasons=reasons), Card())
    assert harness.nvidia.thermal_state(harness.nvidia.device_of(0)) == state


def test_a_driver_older_than_a_function_of_it_does_not_tell(monkeypatch):
    def mismatch(card):
        raise pynvml.NVMLLibraryMismatchError("use nvmlDeviceGetComputeRunningProcesses_v2")

    fake_nvml.install(monkeypatch, Card())
    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetComputeRunningProcesses", mismatch)
    assert harness.nvidia.other_processes(harness.nvidia.device_of(0)) == 0


@pytest.mark.parametrize("visible", [None, "0", "GPU-8f", "MIG-1"])
def test_a_slice_is_named_as_a_slice_however_it_is_chosen(visible, monkeypatch):
    named = "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
    slices = (Card(named, "MIG-1"), Card("NVIDIA A100-SXM4-40GB MIG 2g.10gb", "MIG-2"))
    fake_nvml.install(monkeypatch, Card("NVIDIA A100-SXM4-40GB", "GPU-8f", slices=slices))
    monkeypatch.setattr(harness.nvidia, "card_bytes", lambda index: int(4.75 * GIB))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert card_name(*nvidia_card(0)) == named
    assert harness.nvidia.card_of(0) is None


def test_unified_memory_is_what_cuda_says(monkeypatch):
    """NVML does not know it."""
    fake_nvml.install(monkeypatch, Card("NVIDIA GB10"))
    monkeypatch.setattr(harness.nvidia, "card_bytes", lambda index: int(119.6 * GIB))
    assert card_name(*nvidia_card(0)) == "NVIDIA GB10 128GB"
    monkeypatch.setattr(harness.nvidia, "card_bytes", lambda index: None)
    assert card_name(*nvidia_card(0)) == "NVIDIA GB10"
