"""The shared clock inside Keras' `model.fit`, whichever backend computes.

This module imports Keras, so the backend must have been chosen before. A backend is a module here:
`tensorflow`, `keras_torch` or `keras_jax`, which have the functions that `measure_fit` calls.
"""

from collections.abc import Callable

import keras

from harness.clock import WARMUP_STEPS, Clock, probe_device
from harness.disturbance import Watch
from harness.energy import energy_meter
from harness.soak import soak_for

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


def measure_fit(
    model, data: dict, backend, samples: int, device, batch_size: int, options,
    warmup_steps: int = WARMUP_STEPS, devices: int = 1,
) -> dict:  # fmt: skip
    """Train a compiled classifier under the shared clock, then probe it without its pipeline.

    Args:
        data: arguments of `model.fit`: full batches of features and integer labels (N,), or arrays.
        backend: its module.
        samples: of one epoch.
        device: has a `type` and an `index`.
        batch_size: of one device.
        warmup_steps: steps after the first one that the steady rate leaves out.
        devices: how many train together.

    Returns:
        The measured columns of a row.
    """
    batch_size *= devices
    if batch_size > samples:
        raise ValueError(f"batch size {batch_size} is larger than the {samples} training samples")
    clock = Clock(
        batch_size,
        samples,
        options.epochs,
        backend.synchronize(model),
        options.max_seconds,
        # Of several, one device's joules are too few.
        energy_meter(device.type, device.index or 0) if devices == 1 else None,
        warmup_steps,
        watch=Watch(device.type, device.index or 0),
        soak=soak_for(options),
    )

    def after_first_step():
        backend.forget_trials(device)
        backend.require_compiled(model)

    timed = TimedFit(model, clock, after_first_step)
    model.fit(**data, epochs=clock.epochs_to_train, verbose=0, callbacks=timed)
    row = clock.measurement()
    row["train_loss"] = float(timed.loss)
    features, labels = backend.full_batch(data)
    update = backend.make_train_step(model, features, labels)

    def train_step():
        update()
        return batch_size

    speed = probe_device(train_step, batch_size, backend.synchronize(model))
    row["compute_samples_per_second"] = speed
    row["peak_memory_gb"] = backend.peak_memory_gb(device)
    if rate := row["samples_per_second"]:
        row["input_bound_percent"] = 100 * (1 - rate / speed)
        # Two samples are enough: the work of a step grows with the batch.
        features, labels = features[:2], labels[:2]
        flops_per_sample = backend.count_flops(model, features, labels) / len(labels)
        row["tflops_per_second"] = flops_per_sample * rate / 1e12
    return row
