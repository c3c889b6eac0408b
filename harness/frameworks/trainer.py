"""The shared clock inside Hugging Face's Trainer, so that its runs mean what the others do.

What Trainer adds to a step (gradient clipping, the learning rate's decay, its own bookkeeping) is
inside the clock, because its users pay for it. What would make the device wait is turned off.
"""

import itertools
import os

import torch
from accelerate.utils import send_to_device
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from harness.clock import Clock
from harness.device import Device
from harness.frameworks.pytorch import (
    count_flops,
    has_fused_adam,
    host_copy,
    peak_memory_gb,
    require_compiled,
    reset_peak_memory,
    synchronize,
)
from harness.nvidia import visible_name
from harness.process import tell

PROBE_BATCHES = 8  # of different padded lengths, as the run's are


def hide_other_gpus(options) -> None:
    """Leave one CUDA device visible, before CUDA starts: Trainer spreads over all it sees.

    `options.device` is renamed to match, because that one is then number 0. Of several that train
    together each process has its own.
    """
    device = Device.parse(options.device)
    together = options.num_devices != 1 or options.num_machines != 1
    if device.type not in ("auto", "cuda") or together:
        return
    if not torch.cuda.is_initialized():  # in this process it was hidden before
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_name(device.index)
    options.device = device.type


def training_arguments(batch_size, options, device, scratch, **hyperparameters):
    """TrainingArguments that train as `options` say, and neither report, save nor synchronize.

    Args:
        scratch: a temporary directory; Trainer insists on one.
        hyperparameters: such as `learning_rate`.
    """
    on_cuda = device.type == "cuda"
    return TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        num_train_epochs=options.epochs,
        seed=options.seed,
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=on_cuda,
        # What does not learn has no gradient to wait for, and all else takes part in every step.
        ddp_find_unused_parameters=False,
        dataloader_drop_last=True,  # as in every training here: all batches have one size
        accelerator_config={"non_blocking": on_cuda},
        optim="adamw_torch" + "_fused" * has_fused_adam(device, options.precision),
        # Read back once per epoch; the filter would read every step's loss.
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **hyperparameters,
    )


class TokenCountingTrainer(Trainer):
    """A Trainer that knows how many tokens, padding included, its last step trained on.

    They are the step's work: a batch is as slow as its longest text.
    """

    def training_step(self, model, inputs, *arguments):
        self.tokens_of_step = inputs["input_ids"].numel()
        return super().training_step(model, inputs, *arguments)


class ClockCallback(TrainerCallback):
    """Starts, steps and stops a Clock, and ends the training when its time is up."""

    def __init__(self, clock: Clock, trainer: TokenCountingTrainer, after_first_step=lambda: None):
        self.clock = clock
        self.trainer = trainer
        self.after_first_step = after_first_step

    def on_train_begin(self, args, state, control, **_):
        self.clock.start()

    def on_step_end(self, args, state, control, **_):
        batch_size = args.per_device_train_batch_size
        if self.clock.step(batch_size, self.trainer.tokens_of_step):
            control.should_training_stop = True
        if self.clock.steps == 1:
            self.after_first_step()

    def on_prediction_step(self, args, state, control, **_):
        tell("evaluating")

    def on_epoch_end(self, args, state, control, **_):
        # Trainer itself asks for the stop at the last step. `on_train_end` would be late: the
        # metrics are computed before it.
        if control.should_training_stop:
            self.clock.stop()


def require_precision(trainer: Trainer, options) -> None:
    """Raises RuntimeError unless Trainer computes in the precision that the row says."""
    mixed = trainer.accelerator.mixed_precision
    used = "fp32" if mixed == "no" else mixed
    if used != options.precision:
        raise RuntimeError(f"--precision={options.precision}: Trainer would compute in {used}")


class Training:
    """A model in Trainer's loop; see `harness.frameworks.training`.

    The model is left as the training left it: the probe's learning rate is 0.
    """

    def __init__(self, trainer: TokenCountingTrainer, device: torch.device, options):
        require_precision(trainer, options)
        self.trainer, self.device, self.options = trainer, device, options
        self.synchronize = synchronize(device)
        if options.compile:
            # Padded lengths vary: kernels for one length would be compiled again for the next.
            trainer.model.compile(dynamic=True)

    @property
    def network(self):
        return self.trainer.model_wrapped

    def spread(self, wrap, share) -> None:
        """Nothing: Trainer itself does that where several devices train together."""

    def run(self, clock: Clock) -> float:
        trainer = self.trainer
        trainer.args.num_train_epochs = clock.epochs_to_train
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ClockCallback(clock, trainer, self.after_first_step))
        trainer.train()
        self.batches = probe_batches(trainer)
        self.train_step = make_train_step(trainer, self.batches)
        return [log["loss"] for log in trainer.state.log_history if "loss" in log][-1]

    def after_first_step(self) -> None:
        reset_peak_memory(self.device)
        if self.options.compile:
            require_compiled()

    def flops_per_work(self) -> float:
        tokens = sum(batch["input_ids"].shape[1] for batch in self.batches)
        model, batches = self.trainer.model, self.batches
        return count_flops(lambda: backward_of_first_samples(model, batches)) / tokens

    def peak_memory_gb(self) -> float | None:
        return peak_memory_gb(self.device)


def probe_batches(trainer: Trainer) -> list[dict]:
    """Up to PROBE_BATCHES batches, in the host's memory."""
    batches = itertools.islice(trainer.get_train_dataloader(), PROBE_BATCHES)
    device = trainer.args.device
    return [{name: host_copy(part, device) for name, part in batch.items()} for batch in batches]


def make_train_step(trainer: Trainer, batches: list[dict]):
    """One update as Trainer makes it, on the next of `batches` in turn; nothing is learnt.

    A batch is copied to the device as Trainer's loader does it. The update returns the number of
    tokens, padding included.
    """
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    next_batch = itertools.cycle(batches)
    device, asynchronous = trainer.args.device, trainer.args.accelerator_config.non_blocking

    def train_step():
        batch = send_to_device(next(next_batch), device, non_blocking=asynchronous)
        trainer.training_step(trainer.model_wrapped, batch)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.model_wrapped.zero_grad()
        return trainer.tokens_of_step

    return train_step


def backward_of_first_samples(model, batches: list[dict]) -> None:
    """Forward and backward pass of the first sample of each batch, padded as in the batch.

    Attention is written out as matrix products, because the counter of floating-point operations
    does not know every device's fused kernel.
    """
    fused = model.config._attn_implementation
    model.set_attn_implementation("eager")
    for batch in batches:
        first = {name: part[:1].to(model.device) for name, part in batch.items()}
        # Not through `model(...)`, which may be compiled: compiled operations are not seen.
        model.forward(**first).loss.backward()
    model.zero_grad()
    model.set_attn_implementation(fused)
