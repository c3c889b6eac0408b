"""The shared clock inside Keras' `model.fit`, whichever backend computes.

This module imports Keras, so the backend must have been chosen before. A backend is a module here:
`tensorflow`, `keras_torch` or `keras_jax`, which have the functions that `Fit` calls.
"""

from collections.abc import Callable

import keras

from harness.clock import Clock

POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}


class TimedFit(keras.callbacks.CallbackList):
    """Runs the clock while `model.fit` trains, and ends it when the time is up.

    Takes the place of Keras' own list of callbacks, which reads the loss after every step and so
    makes every step wait for the device. `steps_per_execution` stays 1: steps that are hidden in
    one execution would hide the edges of the windows too.
    """

    def __init__(self, model, clock: Clock, after_first_step: Callable = lambda: None):
        super().__init__(add_history=True, model=model)
        self.clock = clock
        self.after_first_step = after_first_step
        self.loss = None

    def on_train_begin(self, logs=None):
        self.clock.start()

    def on_train_batch_end(self, batch, logs=None):
        if self.clock.step(self.clock.batch_size):
            self.model.stop_training = True
        if self.clock.steps == 1:
            self.after_first_step()

    def on_epoch_end(self, epoch, logs=None):
        self.loss = logs["loss"]

    def on_train_end(self, logs=None):
        self.clock.stop()


def require_compiled(model) -> None:
    """Raises RuntimeError where steps that were to be compiled ran operation by operation.

    On TensorFlow that is all: what XLA cannot compile is an error there.
    """
    if model.jit_compile and model.run_eagerly:
        raise RuntimeError("--compile: Keras runs every operation by itself")


class Fit:
    """A compiled classifier in `model.fit`; see `harness.frameworks.training`.

    Args:
        data: arguments of `model.fit`: full batches of features and integer labels (N,), or arrays.
        backend: its module.
        device: has a `type` and an `index`.
    """

    def __init__(self, model, data: dict, backend, device):
        self.model, self.data, self.backend, self.device = model, data, backend, device
        self.synchronize = backend.synchronize(model)

    def run(self, clock: Clock) -> float:
        timed = TimedFit(self.model, clock, self.after_first_step)
        self.model.fit(**self.data, epochs=clock.epochs_to_train, verbose=0, callbacks=timed)
        self.batch = self.backend.full_batch(self.data)
        self.update = self.backend.make_train_step(self.model, *self.batch)
        return float(timed.loss)

    def after_first_step(self) -> None:
        self.backend.reset_peak_memory(self.device)
        self.backend.require_compiled(self.model)

    def train_step(self) -> int:
        self.update()
        return len(self.batch[1])

    def flops_per_work(self) -> float:
        # Two samples are enough: the work of a step grows with the batch.
        few = [part[:2] for part in self.batch]
        return self.backend.count_flops(self.model, *few) / len(few[1])

    def peak_memory_gb(self) -> float | None:
        return self.backend.peak_memory_gb(self.device)
