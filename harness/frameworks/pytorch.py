"""The one PyTorch protocol: device, precision, training loop, device-only probe, memory, FLOPs."""

import contextlib
import warnings

import torch
from torch.utils.flop_counter import FlopCounterMode

import harness.machine
from harness.clock import WARMUP_STEPS, Clock, probe_device
from harness.data import choose_data
from harness.disturbance import Watch
from harness.energy import energy_meter
from harness.process import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def start(options) -> torch.device:
    """Seed, choose the device, and make sure that it does the precision asked for.

    `fp32` is true float32: TF32, which NVIDIA cards otherwise use for convolutions, is off.

    Raises:
        UsageError: the device is missing, or cannot compute in the precision.
    """
    device = choose_device(options.device)
    torch.manual_seed(options.seed)
    torch.backends.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = True
    require_precision(device, options.precision)
    return device


def choose_device(name: str) -> torch.device:
    """MPS, then CUDA, then CPU for `auto`; else the device of that name."""
    if name == "auto":
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    there = {
        "cpu": True,
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
    }[device.type]
    if not there:
        raise UsageError(f"--device={name}: PyTorch {torch.__version__} sees no such device here")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def require_precision(device: torch.device, precision: str) -> None:
    """Raises UsageError unless autocast really computes in `precision` on `device`."""
    matrix = torch.ones(8, 8, device=device)
    try:
        # An unsupported type only warns, and computes in float32.
        with warnings.catch_warnings(), autocast(device, precision):
            warnings.simplefilter("ignore")
            computed_in = (matrix @ matrix).dtype
    except RuntimeError:
        computed_in = None
    if computed_in != DTYPES[precision]:
        raise UsageError(f"--precision={precision}: {device.type} cannot do it; use fp32")


def autocast(device: torch.device, precision: str):
    """The context in which forward passes and losses are computed."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def prepare(options, fetch) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share.

    Args:
        fetch: `fetch(options)` brings the real data; raises DataUnreachable where it cannot.
    """
    device = start(options)
    data = choose_data(options.data, lambda: fetch(options))
    return facts(device) | {"data": data}


def facts(device: torch.device) -> dict:
    """The machine columns of a row, of the device that is really used."""
    machine = harness.machine.machine_facts()
    name = size = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, size = properties.name, properties.total_memory
    return {
        **machine,
        "device": f"{device.type} ({name})" if name else device.type,
        "machine": harness.machine.machine_tag(machine, device.type, name, size),
        "framework": f"torch {torch.__version__}",
    }


def synchronize(device: torch.device):
    """A function that waits until `device` has done all its work."""
    if device.type == "cpu":
        return lambda: None
    return torch.accelerator.synchronize


def normalize(images: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """uint8 images (N, 3, H, W) of 0 to 255 as float32 of -1 to 1, on the device they are on."""
    return images.to(torch.float32, memory_format=memory_format).div_(127.5).sub_(1)


def measure_training(
    model,
    loader,
    loss_function,
    optimizer,
    device,
    batch_size,
    options,
    warmup_steps: int = WARMUP_STEPS,
) -> dict:
    """Train an image classifier under the shared clock, then probe the device alone.

    Args:
        loader: yields uint8 images (N, 3, H, W) and int64 labels (N,) on the host.
        warmup_steps: steps after the first one that the steady rate leaves out.

    Returns:
        The measured columns of a row.
    """
    samples = len(loader.dataset)
    if batch_size > samples:
        raise ValueError(f"batch size {batch_size} is larger than the {samples} training samples")
    forward_loss, train_step = make_steps(model, loss_function, optimizer, device, options)
    clock = Clock(
        batch_size,
        samples,
        options.epochs,
        synchronize(device),
        options.max_seconds,
        energy_meter(device.type, device.index or 0),
        warmup_steps,
        watch=Watch(device.type, device.index or 0),
    )
    batch, loss = train(train_step, loader, options.epochs, clock)
    images, labels = (part.to(device) for part in batch)

    def train_step_on_device():
        train_step(images, labels)
        return batch_size

    return complete_row(
        clock,
        loss.item(),
        device,
        train_step=train_step_on_device,
        # Two samples are enough: the work of a step grows with the batch.
        backward=lambda: forward_loss(model, images[:2], labels[:2]).backward(),
        backward_work=len(images[:2]),
    )


def make_steps(model, loss_function, optimizer, device, options):
    """Two functions: the loss of a network on a batch, and one optimizer update of `model`."""
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    model.to(memory_format=memory_format).train()
    # Static shapes: the last, smaller batch must not switch the full ones to dynamic kernels.
    forward = torch.compile(model, dynamic=False) if options.compile else model
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    # From pinned memory on CUDA only: on MPS such a copy may read memory that is already reused
    # (github.com/pytorch/pytorch/issues/189690).
    asynchronous = device.type == "cuda"

    def forward_loss(network, images, labels):
        images = images.to(device, non_blocking=asynchronous)
        labels = labels.to(device, non_blocking=asynchronous)
        with autocast(device, options.precision):
            return loss_function(network(normalize(images, memory_format)), labels)

    def train_step(images, labels):
        optimizer.zero_grad()
        loss = forward_loss(forward, images, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return forward_loss, train_step


def train(train_step, loader, epochs: int, clock: Clock):
    """Train for `epochs`, or until the clock says that the time is up.

    Returns:
        A full batch, and the mean loss (a scalar tensor) of the last epoch's steps.
    """
    clock.start()
    for _ in range(epochs):
        losses = 0.0
        steps = 0
        time_is_up = False
        for batch in loader:
            losses = losses + train_step(*batch)
            steps += 1
            if steps == 1:
                # A copy, because a loader may use a batch's memory again.
                full_batch = [part.clone() for part in batch]
            time_is_up = clock.step(len(batch[1]))
            if time_is_up:
                break
        if time_is_up:
            break
    clock.stop()
    return full_batch, losses / steps


def complete_row(clock, train_loss, device, train_step, backward, backward_work) -> dict:
    """The measured columns of a row, once the clock has stopped.

    Args:
        train_step: one optimizer update on a full batch that already lies on the device; returns
            its work, as the clock was told it.
        backward: forward and backward pass of the uncompiled model, of so much work as
            `backward_work` says; their floating-point operations are counted.
    """
    row = clock.measurement()
    row["train_loss"] = train_loss
    row["peak_memory_gb"] = peak_memory_gb(device)
    work_per_sample = clock.work / clock.samples
    speed = probe_device(train_step, clock.batch_size, synchronize(device))
    row["compute_samples_per_second"] = speed / work_per_sample
    if rate := row["samples_per_second"]:
        row["input_bound_percent"] = 100 * (1 - rate / row["compute_samples_per_second"])
        flops_per_sample = count_flops(backward) / backward_work * work_per_sample
        row["tflops_per_second"] = flops_per_sample * rate / 1e12
    return row


def count_flops(step) -> int:
    """Floating-point operations of `step`: matrix products and convolutions, both passes."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak_memory_gb(device: torch.device) -> float:
    """Peak allocation on the device, in 1e9 bytes; on the CPU this process' peak resident size."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated() / 1e9
    return harness.machine.peak_resident_gb()
