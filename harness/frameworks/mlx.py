"""The one MLX protocol: device, precision, training loop, device-only probe, memory, FLOPs.

MLX is lazy: an operation only adds to a graph, and nothing is computed before an array is
evaluated. A step therefore ends with `mx.async_eval`, which hands its graph to the device and does
not wait, and a window of steps with `mx.eval`, which does.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Read once, at the first product: newer GPUs (Apple's M5, NVIDIA's) otherwise round as TF32 does.
os.environ["MLX_ENABLE_TF32"] = "0"

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

import harness.machine
from harness.clock import WARMUP_STEPS, Clock, probe_device
from harness.data import choose_data
from harness.disturbance import Watch
from harness.energy import energy_meter
from harness.nvidia import has_bf16
from harness.process import UsageError
from harness.soak import soak_for

DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
FINE = 1 + 2**-12  # a float32; in TF32, with 10 bits after the point, it is 1


# Device


class Device(NamedTuple):
    """`cpu`, `mps` (the GPU of an Apple chip) or `cuda`, with the number of the card."""

    type: str
    index: int = 0


def start(options) -> Device:
    """Seed, choose the device, and make sure that it does the precision asked for.

    `fp32` is true float32.

    Raises:
        UsageError: the device is missing, or cannot compute in the precision.
    """
    device = choose_device(options.device)
    mx.random.seed(options.seed)
    require_precision(device, options.precision)
    return device


def choose_device(name: str) -> Device:
    """The GPU, or else the CPU, for `auto`; else the device of that name."""
    gpu_type = "mps" if mx.metal.is_available() else "cuda"
    gpus = mx.device_count(mx.gpu) if mx.is_available(mx.gpu) else 0
    if name == "auto":
        name = gpu_type if gpus else "cpu"
    wanted, _, number = name.partition(":")
    device = Device(wanted, int(number or 0))
    if wanted != "cpu" and (wanted != gpu_type or device.index >= gpus):
        hint = "" if sys.platform == "darwin" else "; for NVIDIA cards install mlx[cuda13]"
        problem = f"MLX {mx.__version__} sees no such device here{hint}"
        raise UsageError(f"--device={name}: {problem}")
    mx.set_default_device(mx.Device(mx.cpu if wanted == "cpu" else mx.gpu, device.index))
    return device


def require_precision(device: Device, precision: str) -> None:
    """Raises UsageError unless `device` convolves and differentiates, in `precision` itself."""
    if device.type == "cuda" and precision == "bf16":
        details = mx.device_info(mx.default_device())
        capability = [details[f"compute_capability_{part}"] for part in ("major", "minor")]
        if not has_bf16(capability):
            raise UsageError(
                f"--precision=bf16: {details['device_name']} has no bf16 arithmetic; use fp16 or "
                "fp32"
            )
    try:
        results = fine_products(DTYPES[precision])
    except (RuntimeError, ValueError):
        raise UsageError(f"--precision={precision}: {device.type} cannot do it; use fp32") from None
    if precision == "fp32" and any(mx.abs(result - FINE).max() > 2**-14 for result in results):
        raise UsageError(
            f"--precision=fp32: {device.type} rounds float32 as TF32 does, and will not stop; "
            "measure with --precision=bf16"
        )


def fine_products(dtype: mx.Dtype) -> list[mx.array]:
    """A matrix product and a convolution whose every element is FINE, if nothing is rounded off.

    They are large enough for the kernels that a training uses; the convolution's gradient is FINE
    too, times what it sums over.
    """
    matrix, images = mx.full((512, 512), FINE, dtype), mx.full((4, 16, 16, 64), FINE, dtype)
    kernel = mx.ones((64, 3, 3, 64), dtype)

    def convolved_sum(kernel):
        return mx.conv2d(images, kernel).sum()

    gradient = mx.grad(convolved_sum)(kernel)
    results = [
        matrix @ mx.ones_like(matrix) / 512,
        mx.conv2d(images, kernel) / (3 * 3 * 64),
        gradient / (4 * 14 * 14),
    ]
    mx.eval(results)
    return results


def prepare(options, fetch) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share.

    Args:
        fetch: `fetch(options)` brings the real data; raises DataUnreachable where it cannot.
    """
    device = start(options)
    data = choose_data(options.data, lambda: fetch(options))
    return facts(device) | {"data": data}


def facts(device: Device) -> dict:
    """The machine columns of a row, of the device that is really used."""
    machine = harness.machine.machine_facts()
    name = size = None
    if device.type == "cuda":
        details = mx.device_info(mx.default_device())
        name, size = details["device_name"], details.get("total_memory")
    return {
        **machine,
        "device": f"{device.type} ({name})" if name else device.type,
        "machine": harness.machine.machine_tag(machine, device.type, name, size),
        "framework": f"mlx {mx.__version__}",
    }


# Data and loss


def in_memory_batches(features, labels, batch_size: int) -> Callable[[], Iterator]:
    """A function that goes through the arrays (N, ...) and (N,) once, in shuffled full batches.

    They lie in the memory that the device computes in, and a whole batch is gathered there at once.
    """
    features, labels = mx.array(features), mx.array(labels)

    def batches():
        order = mx.random.permutation(len(labels))
        for end in range(batch_size, len(labels) + 1, batch_size):
            chosen = order[end - batch_size : end]
            yield features[chosen], labels[chosen]

    return batches


def normalize(images: mx.array) -> mx.array:
    """uint8 images (N, H, W, 3) of 0 to 255 as float32 of -1 to 1."""
    return images.astype(mx.float32) / 127.5 - 1


def cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """The mean over a batch, a scalar, of logits (N, classes) and labels (N,); in float32."""
    return nn.losses.cross_entropy(logits.astype(mx.float32), labels, reduction="mean")


def adam() -> optim.Adam:
    """The Adam of PyTorch and Keras, whose bias correction is off by default in MLX."""
    return optim.Adam(learning_rate=1e-3, bias_correction=True)


# Measuring


def measure_training(
    model, loss_function, batches, samples: int, device: Device, batch_size: int, options,
    warmup_steps: int = WARMUP_STEPS,
) -> dict:  # fmt: skip
    """Train a classifier with Adam under the shared clock, then probe it without its pipeline.

    Args:
        loss_function: `loss_function(model, features, labels)`, a scalar.
        batches: a function that goes through the full batches of one epoch: features (N, ...) and
            labels (N,).
        samples: of one epoch, with the rest that fills no batch.
        warmup_steps: steps after the first one that the steady rate leaves out.

    Returns:
        The measured columns of a row.
    """
    if batch_size > samples:
        raise ValueError(f"batch size {batch_size} is larger than the {samples} training samples")
    optimizer = adam()
    train_step, synchronize = make_steps(model, loss_function, optimizer, options)
    features, labels = next(batches())
    mx.eval(features, labels)
    clock = Clock(
        batch_size,
        samples,
        options.epochs,
        synchronize,
        options.max_seconds,
        energy_meter(device.type, device.index),
        warmup_steps,
        watch=Watch(device.type, device.index),
        soak=soak_for(options),
    )
    loss = train(train_step, batches, clock)
    row = clock.measurement()
    row["train_loss"] = loss.item()

    def train_step_on_same_batch():
        train_step(features, labels)
        return batch_size

    speed = probe_device(train_step_on_same_batch, batch_size, synchronize)
    row["compute_samples_per_second"] = speed
    row["peak_memory_gb"] = peak_memory_gb(device)
    if rate := row["samples_per_second"]:
        row["input_bound_percent"] = 100 * (1 - rate / speed)
        # Two samples are enough: the work of a step grows with the batch.
        flops = count_flops(model, loss_function, features[:2], labels[:2])
        row["tflops_per_second"] = flops / len(labels[:2]) * rate / 1e12
    return row


def make_steps(model, loss_function, optimizer, options):
    """Two functions: one optimizer update on a batch, and one that waits for all updates so far.

    In bf16 and fp16 the pass computes with weights cast to that type, while the weights themselves
    and Adam's moments stay float32.
    """
    dtype = DTYPES[options.precision]
    model.train()
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state, mx.random.state]

    def loss_of(weights, features, labels):
        model.update(tree_map(lambda weight: weight.astype(dtype), weights))
        return loss_function(model, features, labels)

    def update(features, labels):
        weights = model.trainable_parameters()
        loss, gradients = mx.value_and_grad(loss_of)(weights, features, labels)
        model.update(optimizer.apply_gradients(gradients, weights))
        return loss

    if options.compile:
        require_compiler()
    # All batches have one shape, for which the step is compiled once.
    step = mx.compile(update, inputs=state, outputs=state) if options.compile else update

    def train_step(features, labels):
        loss = step(features, labels)
        mx.async_eval(loss, state)
        return loss

    return train_step, lambda: mx.eval(state)


def require_compiler() -> None:
    """Raises RuntimeError where MLX would call a compiled function anew for every batch."""
    calls = []
    compiled = mx.compile(lambda x: calls.append("traced") or x + x)
    mx.eval(compiled(mx.ones(1)), compiled(mx.ones(1)))
    if len(calls) > 1:
        raise RuntimeError("--compile: mx.compile compiles nothing here (MLX_DISABLE_COMPILE)")


def train(train_step, batches, clock: Clock) -> mx.array:
    """Train for all epochs of the clock, or until it says that the time is up.

    Returns:
        The mean loss of the last epoch's steps, a scalar.
    """
    clock.start()
    for _ in range(clock.epochs_to_train):
        losses = []
        time_is_up = False
        for features, labels in batches():
            losses.append(train_step(features, labels))
            time_is_up = clock.step(len(labels))
            if time_is_up:
                break
        if time_is_up:
            break
    clock.stop()
    return mx.stack(losses).mean()


def peak_memory_gb(device: Device) -> float:
    """Peak allocation on the device, in 1e9 bytes; on the CPU this process' peak resident size."""
    if device.type != "cpu":
        return mx.get_peak_memory() / 1e9
    return harness.machine.peak_resident_gb()


# Floating-point operations


def count_flops(model, loss_function, features, labels) -> int:
    """Operations of a forward and backward pass: matrix products and convolutions, from shapes.

    A multiplication and an addition are two operations. The pass is traced, not run, and what no
    gradient depends on is not in the trace. The model cannot be used afterwards.
    """

    def gradients(features, labels):
        loss, gradients = nn.value_and_grad(model, loss_function)(model, features, labels)
        return [loss, *(gradient for _, gradient in tree_flatten(gradients))]

    nodes = []
    mx.export_function(nodes.append, gradients, features, labels)
    return sum(flops(node) for node in nodes if node["type"] == "primitive")


def flops(node: dict) -> int:
    """Operations of one node of a trace; 0 if it multiplies no matrices."""
    shapes = [shape for _, shape, _ in node["inputs"]]
    result = math.prod(node["outputs"][0][1])
    if node["name"] in ("Matmul", "AddMM"):
        return 2 * result * shapes[0][-1]
    if node["name"] == "Convolution":
        # Of an input spread out with zeros, as in the gradient of a stride, only the rest counts.
        spread = math.prod(node["arguments"][4])
        return 2 * result * math.prod(shapes[1][1:]) // spread
    return 0
