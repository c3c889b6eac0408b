"""The device that boosted trees are trained on, found without a framework, and proven."""

import importlib
import importlib.util
import json
import os

import harness.nvidia
from harness import fits
from harness.data import choose_data
from harness.device import Device
from harness.process import UsageError


def prepare(options, fetch) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share.

    Args:
        fetch: `fetch(options)` brings the real data; raises DataUnreachable where it cannot.
    """
    device = choose_device(options)
    fits.require_threads(options.threads)
    data = choose_data(options.data, lambda: fetch(options))
    # Asked of the module, because the package may be called xgboost-cpu.
    version = importlib.import_module(options.library).__version__
    return device.columns(f"{options.library} {version}") | {"data": data}


def choose_device(options) -> Device:
    """`cuda` or `cpu` for `auto`; else the device of that name.

    Raises:
        UsageError: the library has none of that kind, or the machine has not.
    """
    if options.library == "lightgbm":
        if importlib.util.find_spec("lightgbm") is None:
            raise UsageError("--library=lightgbm: python -m pip install lightgbm")
        if options.device not in ("auto", "cpu"):
            raise UsageError(f"--device={options.device}: LightGBM is measured on the CPU")
        return Device("cpu")
    # Cards are numbered as NVML does, which names them.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    import xgboost

    asked = Device.parse(options.device)
    if asked.type == "mps":
        raise UsageError("--device=mps: XGBoost does not use Apple's GPU; take cpu")
    card = None if asked.type == "cpu" else harness.nvidia.nvidia_card(asked.index)
    if asked.type == "cuda" and not card:
        raise UsageError(f"--device={options.device}: NVIDIA's driver shows no such card here")
    if asked.type == "auto" and not xgboost.build_info()["USE_CUDA"]:
        card = None
    return Device("cuda", asked.index, *card) if card else Device("cpu")


def require_device(model, device: str) -> None:
    """Raises RuntimeError unless it was trained on `device`; XGBoost only warns of another."""
    used = json.loads(model.save_config())["learner"]["generic_param"]["device"]
    if Device.parse(used).type != Device.parse(device).type:
        raise RuntimeError(f"XGBoost trained on {used}, not on {device}: a build without CUDA?")
