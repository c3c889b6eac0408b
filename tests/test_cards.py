"""One card, one name, whichever framework says how much memory it has."""

import ctypes

import pytest

import harness.cards
from harness.cards import card_bytes, card_name, gigabytes_sold, has_bf16

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "by_torch", "by_driver", "expected"),
    [
        # GiB as PyTorch reports them, and MiB as nvidia-smi prints them.
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
    monkeypatch.setattr(harness.cards.ctypes, "CDLL", lambda name: Driver())
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
