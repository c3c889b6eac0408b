"""The shared clock inside Keras' `model.fit`, whichever backend computes.

This module imports Keras, so the backend must have been chosen before.
"""

from collections.abc import Callable

import keras

from harness.clock import Clock
from harness.device import Device

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


class Fit:
    """A compiled classifier in `model.fit`; see `harness.frameworks.training`.

    A backend adds `synchronize` and `peak_memory_gb` of the protocol, and methods that only its
    framework can give:

    - `placed_on()`: the type of the device where the weights are: `cpu`, `mps` or `cuda`.
    - `make_update(features, labels)`: a function that makes one update as in `fit`, on that batch
      each time; asked for once `fit` has trained.
    - `count_flops(features, labels)`: of a forward and a backward pass: matrix products and
      convolutions, in which a multiplication and an addition are two operations.
    - `reset_peak_memory()`: count the peak anew after the first step, in which cuDNN tries its
      algorithms; what they need may be several times what the chosen ones do.

    Args:
        data: arguments of `model.fit`, as `batches` makes them.
    """

    def __init__(self, model, data: dict, device: Device):
        self.model, self.data, self.device = model, data, device

    @staticmethod
    def batches(features, labels, batch_size: int) -> dict:
        """Arrays (N, ...) and (N,) for `model.fit`, which shuffles them and gathers whole batches.

        As many as full batches hold: a smaller one would be compiled for anew.
        """
        whole = len(labels) // batch_size * batch_size
        arrays = {"x": features[:whole], "y": labels[:whole]}
        return arrays | {"batch_size": batch_size, "shuffle": True}

    def full_batch(self):
        """Features and labels of a batch, in the host's memory."""
        size = self.data["batch_size"]
        return self.data["x"][:size], self.data["y"][:size]

    def run(self, clock: Clock) -> float:
        timed = TimedFit(self.model, clock, self.after_first_step)
        self.model.fit(**self.data, epochs=clock.epochs_to_train, verbose=0, callbacks=timed)
        self.batch = self.full_batch()
        self.update = self.make_update(*self.batch)
        return float(timed.loss)

    def after_first_step(self) -> None:
        self.reset_peak_memory()
        self.require_compiled()

    def require_compiled(self) -> None:
        """Raises RuntimeError where steps that were to be compiled ran operation by operation.

        On TensorFlow that is all: what XLA cannot compile is an error there.
        """
        if self.model.jit_compile and self.model.run_eagerly:
            raise RuntimeError("--compile: Keras runs every operation by itself")

    def train_step(self) -> int:
        self.update()
        return len(self.batch[1])

    def flops_per_work(self) -> float:
        # Two samples are enough: the work of a step grows with the batch.
        few = [part[:2] for part in self.batch]
        return self.count_flops(*few) / len(few[1])
