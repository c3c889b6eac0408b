"""Keras 3 on TensorFlow, PyTorch or JAX: one protocol on `model.fit`, one backend per process."""

import importlib
import importlib.util
import os
import random

from tqdm import tqdm

from harness.data import choose_data
from harness.process import UserError, run_in_fresh_process, tell, value_of

MODULES = {
    "tensorflow": "tensorflow",
    "torch": "keras_torch",
    "jax": "keras_jax",
}
OF_BACKEND = ("device", "threads", "compile", "framework")  # in which the rows of two differ


def module_of(backend: str):
    """The module that measures on a backend, which imports its framework."""
    return importlib.import_module(f"harness.frameworks.{MODULES[backend]}")


def start(backend: str, options):
    """Choose backend, device and precision for this process, before anything imports Keras.

    No setting of the user's is read, neither a variable nor ~/.keras/keras.json: another float type
    or memory order would be another measurement.

    Returns:
        The device, with a `type` and an `index`.

    Raises:
        UsageError: the device is missing, or cannot do what is asked for.
    """
    for name in [name for name in os.environ if name.startswith("KERAS_")]:
        del os.environ[name]
    os.environ |= {"KERAS_BACKEND": backend, "KERAS_HOME": os.devnull}
    device = module_of(backend).start(options)
    import keras
    import numpy as np

    from harness.frameworks.fit import POLICIES

    # Keras' set_random_seed would load TensorFlow, whichever backend computes.
    random.seed(options.seed)
    np.random.seed(options.seed)
    keras.config.set_dtype_policy(POLICIES[options.precision])
    return device


def compiles(backend: str, options) -> bool:
    """Whether `jit_compile` is on: for --compile, and always on JAX, which Keras compiles anyway.

    TensorFlow then compiles with XLA, PyTorch with torch.compile.
    """
    return options.compile or backend == "jax"


def prepare(options, fetch) -> dict:
    """Settle data, and device of each backend, once per sweep.

    A backend that is missing, or does not start, is left out with a line.

    A sweep is of one machine, that of the first backend on a GPU where there is one. Another
    backend may find no GPU there: the `device` of its rows says so.

    Args:
        fetch: `fetch(options)` brings the real data; raises DataUnreachable where it cannot.

    Returns:
        The columns that all rows share, and under `keras_backend` those of each backend's rows.

    Raises:
        UserError: none of the backends is installed, or none starts.
    """
    missing = [name for name in options.backends if importlib.util.find_spec(name) is None]
    for name in missing:
        tqdm.write(f"{name} is not installed, so it is left out: python -m pip install {name}")
    found = [name for name in dict.fromkeys(options.backends) if name not in missing]
    if not found:
        raise UserError(f"--backends: none of {', '.join(missing)} is installed")
    data = choose_data(options.data, lambda: fetch(options))
    facts = facts_of_each(found, options)
    found = list(facts)
    on_gpu = [name for name in found if not facts[name]["device"].startswith("cpu")]
    if on_gpu:
        for name in set(found) - set(on_gpu):
            tqdm.write(f"{name} sees no GPU here: it is measured on the CPU")
    shared = facts[(on_gpu or found)[0]]
    return {
        **shared,
        "framework": shared["framework"].partition(",")[0],
        "data": data,
        "keras_backend": {name: {n: facts[name].get(n) for n in OF_BACKEND} for name in found},
    }


def facts_of_each(backends: list[str], options) -> dict[str, dict]:
    """The machine columns of each backend that starts; another one is left out with a line.

    Raises:
        UserError: what the last one said, where none starts.
    """
    facts = {}
    for name in backends:
        tell(f"preparing {name}")
        try:
            # Each in a process of its own: frameworks do not always bear one another.
            facts[name] = value_of(run_in_fresh_process(facts_of, name, options))
        except UserError as error:
            if name == backends[-1] and not facts:
                raise
            tqdm.write(f"{name} is left out: {error}")
    return facts


def facts_of(backend: str, options) -> dict:
    """The machine columns of a backend's rows, of the device that it really uses."""
    device = start(backend, options)
    import keras

    version = importlib.import_module(backend).__version__
    return {
        **module_of(backend).facts(device),
        "framework": f"keras {keras.__version__}, {backend} {version}",
        "compile": compiles(backend, options),
    }


def fit_in_memory(model, features, labels, device, batch_size: int):
    """The training of a compiled classifier on arrays; see `harness.frameworks.training`.

    Args:
        features, labels: NumPy arrays (N, ...) and (N,), batched in memory by the backend's own
            means.

    Raises:
        UserError: Keras did not place the weights on the device.
    """
    import keras

    Fit = module_of(keras.config.backend()).Fit
    training = Fit(model, Fit.batches(features, labels, batch_size), device)
    if (place := training.placed_on()) != device.type:
        raise UserError(f"Keras placed the weights on {place}, not on {device.type}")
    return training
