"""A device: what --device names, what is chosen of what is there, how precision is proven."""

import numpy as np
import pytest

from harness.device import FINE, Device, choose, choose_several, prove_precision
from harness.process import UsageError

MAC, CARDS, CPU = {"mps": 1, "cpu": 1}, {"cuda": 2, "cpu": 8}, {"cpu": 1}


def exact() -> list:
    return [np.full(4, FINE, np.float32)]


@pytest.mark.parametrize(
    ("text", "device"),
    [("auto", Device("auto")), ("cpu", Device("cpu")), ("cuda", Device("cuda", 0)),
     ("cuda:0", Device("cuda", 0)), ("cuda:11", Device("cuda", 11))],
)  # fmt: skip
def test_a_device_is_read_as_it_is_named(text, device):
    assert Device.parse(text) == device
    assert Device.parse(str(device)) == device


@pytest.mark.parametrize(
    ("name", "seen", "chosen"),
    [("auto", MAC, "mps"), ("auto", CARDS, "cuda"), ("auto", CPU, "cpu"), ("cpu", CARDS, "cpu"),
     ("auto", {"cuda": 0, "cpu": 1}, "cpu"), ("auto", {"xpu": 1, "cpu": 1}, "cpu"),
     ("cuda:1", CARDS, "cuda:1")],
)  # fmt: skip
def test_auto_is_the_gpu_where_there_is_one(name, seen, chosen):
    assert str(choose(name, seen, "Framework 1.0")) == chosen


@pytest.mark.parametrize(
    ("name", "seen"),
    [("cuda", MAC), ("mps", CARDS), ("cuda:2", CARDS), ("cuda", CPU), ("cpu", {}), ("auto", {})],
)
def test_a_device_that_is_not_there_is_bad_usage(name, seen):
    with pytest.raises(UsageError) as said:
        choose(name, seen, "Framework 1.0")
    assert str(said.value) == f"--device={name}: Framework 1.0 sees no such device here"
    with pytest.raises(UsageError, match="no such device here; install it$"):
        choose(name, seen, "Framework 1.0", "install it")


def test_several_of_a_kind():
    assert choose_several("auto", "all", CARDS) == Device("cuda", count=2)
    assert choose_several("cpu", 3, CARDS) == Device("cpu", count=3)
    for kind, count, seen, there in (
        ("cuda", 3, CARDS, 2), ("cuda", 2, MAC, 0), ("cuda", "all", MAC, 0), ("mps", 2, MAC, 1),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"^--num_devices=.: there are {there} of {kind} on"):
            choose_several(kind, count, seen)
    with pytest.raises(UsageError, match="--device=cuda:1 names one device; take cuda or cpu"):
        choose_several("cuda:1", 2, CARDS)


@pytest.mark.parametrize("wrong", [np.ones(4, np.float32), np.float32([FINE, FINE + 2**-13])])
def test_one_element_that_is_rounded_refuses_fp32_only(wrong):
    for precision in ("bf16", "fp16"):
        prove_precision(Device("cuda"), precision, lambda: [*exact(), wrong])
    prove_precision(Device("cuda"), "fp32", exact)
    with pytest.raises(UsageError) as said:
        prove_precision(Device("cuda"), "fp32", lambda: [*exact(), wrong])
    assert str(said.value) == (
        "--precision=fp32: cuda rounds float32 as TF32 does, and will not stop: unset "
        "NVIDIA_TF32_OVERRIDE, or measure with --precision=bf16"
    )
    with pytest.raises(UsageError, match="will not stop; measure with --precision=bf16"):
        prove_precision(Device("mps"), "fp32", lambda: [wrong])


def test_what_a_device_cannot_do_is_bad_usage_and_other_errors_are_not():
    def products():
        raise NotImplementedError("no such kernel")

    with pytest.raises(UsageError, match="^--precision=fp16: mps cannot do it; use fp32$"):
        prove_precision(Device("mps"), "fp16", products, (NotImplementedError,))
    with pytest.raises(NotImplementedError):
        prove_precision(Device("mps"), "fp16", products)


def test_bf16_is_asked_of_cards_that_have_it():
    old, new = (Device("cuda", 0, "Tesla T4", capability=pair) for pair in ((7, 5), (8, 0)))
    prove_precision(new, "bf16", exact)
    prove_precision(old, "fp16", exact)
    with pytest.raises(UsageError, match="^--precision=bf16: Tesla T4 has no bf16 arithmetic, and"):
        prove_precision(old, "bf16", exact)
