"""The one MLX protocol: device, precision, training loop, device-only probe, memory, FLOPs.

MLX is lazy: an operation only adds to a graph, and nothing is computed before an array is
evaluated. A step therefore ends with `mx.async_eval`, which hands its graph to the device and does
not wait, and a window of steps with `mx.eval`, which does.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

# Read once, at the first product: newer GPUs (Apple's M5, NVIDIA's) otherwise round as TF32 does.
os.environ["MLX_ENABLE_TF32"] = "0"

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from harness.data import choose_data
from harness.device import FINE, Device, choose, prove_precision
from harness.frameworks.training import run_epochs

DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}


# Device


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
    gpus = mx.device_count(mx.gpu) if mx.is_available(mx.gpu) else 0
    seen = {"mps" if mx.metal.is_available() else "cuda": gpus, "cpu": 1}
    hint = "" if sys.platform == "darwin" else "for NVIDIA cards install mlx[cuda13]"
    device = choose(name, seen, f"MLX {mx.__version__}", hint)
    mx.set_default_device(mx.Device(mx.cpu if device.type == "cpu" else mx.gpu, device.index))
    if device.type != "cuda":
        return device
    card = mx.device_info(mx.default_device())
    parts = (f"compute_capability_{part}" for part in ("major", "minor"))
    return replace(
        device, name=card["device_name"], memory_bytes=card.get("total_memory"),
        capability=tuple(card[part] for part in parts if part in card),
    )  # fmt: skip


def require_precision(device: Device, precision: str) -> None:
    """Raises UsageError unless `device` convolves and differentiates, in `precision` itself."""
    errors = (RuntimeError, ValueError)
    prove_precision(device, precision, lambda: fine_products(DTYPES[precision]), errors)


def fine_products(dtype: mx.Dtype) -> list[mx.array]:
    """The products that `prove_precision` asks for.

    The convolution's gradient is FINE too, times what it sums over.
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
    return device.columns(f"mlx {mx.__version__}") | {"data": data}


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


def cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """The mean over a batch, a scalar, of logits (N, classes) and labels (N,); in float32."""
    return nn.losses.cross_entropy(logits.astype(mx.float32), labels, reduction="mean")


# Measuring


class Training:
    """A model in MLX's usual loop; see `harness.frameworks.training`.

    In bf16 and fp16 the pass computes with weights cast to that type, while the weights themselves
    and the optimizer's moments stay float32.

    Args:
        loss_function: `loss_function(model, *batch)`, a scalar.
        batches: a function that goes through the full batches of one epoch, tuples of arrays of
            which each has as many samples in its rows.
    """

    def __init__(self, model, loss_function, optimizer, batches, device: Device, options):
        self.model, self.loss_function, self.optimizer = model, loss_function, optimizer
        self.batches, self.device = batches, device
        self.dtype = DTYPES[options.precision]
        model.train()
        optimizer.init(model.trainable_parameters())
        self.state = [model.state, optimizer.state, mx.random.state]
        self.compiled_step = self.update
        if options.compile:
            require_compiler()
            # All batches have one shape, for which the step is compiled once.
            self.compiled_step = mx.compile(self.update, inputs=self.state, outputs=self.state)

    def update(self, *batch) -> mx.array:
        weights = self.model.trainable_parameters()
        loss, gradients = mx.value_and_grad(self.loss)(weights, *batch)
        self.model.update(self.optimizer.apply_gradients(gradients, weights))
        return loss

    def loss(self, weights, *batch) -> mx.array:
        self.model.update(tree_map(lambda weight: weight.astype(self.dtype), weights))
        return self.loss_function(self.model, *batch)

    def run(self, clock) -> float:
        return mx.stack(run_epochs(self, self.batches, clock)).mean().item()

    def step(self, batch) -> mx.array:
        loss = self.compiled_step(*batch)
        mx.async_eval(loss, self.state)
        return loss

    def keep(self, batch) -> None:
        self.batch = batch

    def after_first_step(self) -> None:
        pass

    def synchronize(self) -> None:
        mx.eval(self.state)

    def train_step(self) -> int:
        self.step(self.batch)
        return len(self.batch[0])

    def flops_per_work(self) -> float:
        # Two samples are enough: the work of a step grows with the batch.
        few = [part[:2] for part in self.batch]
        return count_flops(self.model, self.loss_function, few) / len(few[0])

    def peak_memory_gb(self) -> float:
        return mx.get_peak_memory() / 1e9


def require_compiler() -> None:
    """Raises RuntimeError where MLX would call a compiled function anew for every batch."""
    calls = []
    compiled = mx.compile(lambda x: calls.append("traced") or x + x)
    mx.eval(compiled(mx.ones(1)), compiled(mx.ones(1)))
    if len(calls) > 1:
        raise RuntimeError("--compile: mx.compile compiles nothing here (MLX_DISABLE_COMPILE)")


# Floating-point operations


def count_flops(model, loss_function, batch) -> int:
    """Operations of a forward and backward pass: matrix products and convolutions, from shapes.

    A multiplication and an addition are two operations. The pass is traced, not run, and what no
    gradient depends on is not in the trace. The model cannot be used afterwards.
    """

    def gradients(*batch):
        loss, gradients = nn.value_and_grad(model, loss_function)(model, *batch)
        return [loss, *(gradient for _, gradient in tree_flatten(gradients))]

    nodes = []
    mx.export_function(nodes.append, gradients, *batch)
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
