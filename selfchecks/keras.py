"""What the Keras protocol costs on each backend: ratios of two things measured in one run.

`model.fit` under the clock against plain `model.fit` without callbacks, in interleaved pairs, each
backend in a process of its own.
"""

import argparse
import importlib.util

import numpy as np

import keras_test_nlp as nlp
from harness.clock import Clock
from harness.frameworks import keras
from harness.process import run_in_fresh_process, value_of
from selfchecks.pairs import interleaved_ratios

OPTIONS = argparse.Namespace(
    device="cpu", precision="fp32", compile=False, seed=1, **nlp.EXPERIMENT.model_flags
)


def loop_ratios(backend: str, pairs: int = 30, batch_size: int = 8, steps: int = 20) -> list[float]:
    """Of interleaved pairs, plain `fit`'s seconds divided by those under the clock.

    Model and batches are small, so that what the clock costs per step weighs more than in a
    benchmark.
    """
    device = keras.start(backend, OPTIONS)
    from harness.frameworks.fit import TimedFit

    samples = batch_size * steps
    random = np.random.default_rng(OPTIONS.seed)
    shape = (samples, OPTIONS.maxlen)
    reviews = random.integers(OPTIONS.vocab_size, size=shape, dtype=np.int32)
    labels = random.integers(2, size=samples)
    model = nlp.build_model(OPTIONS, keras.compiles(backend, OPTIONS))
    training = keras.fit_in_memory(model, reviews, labels, device, batch_size)

    def plain():
        model.fit(**training.data, verbose=0)

    def under_the_clock():
        clock = Clock(batch_size, samples, 1, training.synchronize)
        model.fit(**training.data, verbose=0, callbacks=TimedFit(model, clock))

    return interleaved_ratios(under_the_clock, plain, pairs)


def ratios_by_backend(pairs: int = 30):
    """Yields each backend that is installed, with its ratios."""
    for backend in filter(importlib.util.find_spec, nlp.BACKENDS):
        yield backend, value_of(run_in_fresh_process(loop_ratios, backend, pairs))
