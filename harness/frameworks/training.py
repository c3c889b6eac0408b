"""The one measured training: under the clock, then without its pipeline. Imports no framework.

A framework says what differs, as a `Training`; what is equal for all of them is here.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from harness.clock import WARMUP_STEPS, Clock, probe_device
from harness.disturbance import Watch
from harness.energy import energy_meter
from harness.machine import peak_resident_gb
from harness.observer import Observer
from harness.soak import soak_for


class Training(Protocol):
    """A model in training on one device."""

    device: Any  # has a `type` and an `index`

    def run(self, clock: Clock) -> float:
        """Train: `clock.start`, `clock.step` after every update until it says so, `clock.stop`.

        Returns:
            The mean loss of the last epoch's steps.
        """

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""

    def train_step(self) -> int:
        """One update as in the run, on a batch that lies ready in the host's memory.

        The copy to the device is in it: that MPS finishes all its work first is not the
        pipeline's doing. Called once the run has ended.

        Returns:
            Its work, as the clock was told it.
        """

    def flops_per_work(self) -> float:
        """Floating-point operations of a forward and a backward pass, per unit of work."""

    def peak_memory_gb(self) -> float | None:
        """Peak allocation on a GPU, in 1e9 bytes; None where the framework does not tell."""


class OwnLoop(Protocol):
    """What `run_epochs` asks of a training whose framework has no loop of its own."""

    def step(self, batch) -> Any:
        """One optimizer update; returns the loss, a scalar that nobody has waited for."""

    def keep(self, batch) -> None:
        """Keep the run's first batch for `train_step`, as it came from the pipeline."""

    def after_first_step(self) -> None:
        """What the first step has shown, and what it must not leave behind."""


# Set in a rank (`harness.frameworks.ranks`), where several trainings are measured as one.
several: Callable | None = None


def measure_training(
    training: Training,
    samples: int,
    batch_size: int,
    options,
    warmup_steps: int = WARMUP_STEPS,
    devices: int = 1,
) -> dict:
    """Train under the clock, then probe without the pipeline.

    Args:
        samples: of one epoch, with the rest that fills no batch.
        batch_size: of one device.
        warmup_steps: steps after the first one that the steady rate leaves out.
        devices: how many train together in this process.

    Returns:
        The measured columns of a row.

    Raises:
        ValueError: the samples fill no batch.
    """
    if several:
        return several(training, samples, batch_size, options, warmup_steps)
    require_batch(batch_size * devices, samples)
    place = training.device.type, training.device.index or 0
    # Of several devices, one's joules are not all.
    energy = energy_meter(*place) if devices == 1 else None
    observer = Observer(Watch(*place), energy, soak_for(options))
    clock = Clock(batch_size * devices, samples, options.epochs, training.synchronize,
                  options.max_seconds, warmup_steps, observer)  # fmt: skip
    return row_of(training, clock)


def require_batch(batch_size: int, samples: int) -> None:
    if batch_size > samples:
        raise ValueError(f"batch size {batch_size} is larger than the {samples} training samples")


def row_of(training: Training, clock: Clock) -> dict:
    """Run the training under this clock; returns the measured columns of its row."""
    loss = training.run(clock)
    row = clock.measurement() | {"train_loss": loss}
    work_per_sample = clock.work / clock.samples
    # No longer than what it is held against.
    longest = clock.steady_seconds or 0
    alone = probe_device(training.train_step, clock.synchronize, clock.team, longest)
    row["compute_samples_per_second"] = alone = alone / work_per_sample
    on_cpu = training.device.type == "cpu"
    row["peak_memory_gb"] = peak_resident_gb() if on_cpu else training.peak_memory_gb()
    if rate := row["samples_per_second"]:
        row["input_bound_percent"] = 100 * (1 - rate / alone)
        flops_per_sample = training.flops_per_work() * work_per_sample
        row["tflops_per_second"] = flops_per_sample * rate / 1e12
    return row


def run_epochs(training: OwnLoop, epoch: Callable[[], Iterable], clock: Clock) -> list:
    """Train until all epochs of the clock are over, or it says that the time is up.

    Args:
        epoch: goes once through the batches of an epoch; the first part of a batch has a sample
            in each row.

    Returns:
        The losses of the last epoch's steps.
    """
    clock.start()
    for _ in range(clock.epochs_to_train):
        losses, time_is_up = [], False
        for batch in epoch():
            losses.append(training.step(batch))
            if clock.steps == 0:
                training.keep(batch)
            time_is_up = clock.step(len(batch[0]))
            if clock.steps == 1:
                training.after_first_step()
            if time_is_up:
                break
        if time_is_up:
            break
    clock.stop()
    return losses
