"""The one TensorFlow protocol: device, precision, timed `model.fit`, device-only probe, FLOPs."""

import contextlib
import importlib.metadata
import math
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import harness.machine
from harness.clock import WARMUP_STEPS, Clock, probe_device
from harness.data import choose_data
from harness.disturbance import Watch
from harness.energy import energy_meter
from harness.process import UsageError, UserError

# Both are read once, when the libraries load.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # errors only
os.environ["KERAS_BACKEND"] = "tensorflow"


@contextlib.contextmanager
def silent_start():
    """Nothing on standard error: TensorFlow logs before it has read TF_CPP_MIN_LOG_LEVEL."""
    sys.stderr.flush()
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def import_tensorflow():
    """The module `tensorflow`.

    Raises:
        UserError: it does not load beside the tensorflow-metal that is installed.
    """
    try:
        import tensorflow
    except (ImportError, its_own_error()) as error:
        versions = [installed_version(name) for name in ("tensorflow", "tensorflow-metal")]
        if not all(versions):
            raise
        raise UserError(
            f"tensorflow {versions[0]} cannot be loaded beside tensorflow-metal {versions[1]} "
            f"({type(error).__name__}); install tensorflow 2.18.1 or 2.19.1 with "
            "tensorflow-metal 1.2.0"
        ) from None
    return tensorflow


def its_own_error() -> type[Exception]:
    """The base of TensorFlow's errors, as far as its import has come; else ImportError."""
    errors = sys.modules.get("tensorflow.python.framework.errors_impl")
    return getattr(errors, "OpError", ImportError)


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


with silent_start():
    tf = import_tensorflow()
    GPUS = tf.config.list_physical_devices("GPU")

import keras  # noqa: E402 - loads TensorFlow too, but not silently

DTYPES = {"bf16": tf.bfloat16, "fp16": tf.float16}
POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}


# Device


class Device(NamedTuple):
    """`cpu`, `mps` (Metal, which TensorFlow calls GPU:0) or `cuda` with the number of the card."""

    type: str
    index: int = 0

    @property
    def name(self) -> str:
        """As `tf.device` wants it; of several cards only the chosen one is visible."""
        return "/CPU:0" if self.type == "cpu" else "/GPU:0"


def start(options) -> Device:
    """Seed, choose the device, and make sure that it does what is asked for.

    `fp32` is true float32: TF32, which NVIDIA cards otherwise use, is off. Keras would compile with
    XLA wherever it can; here it does so for --compile only (`jit_compile=options.compile`).

    Raises:
        UsageError: the device is missing, cannot compute in the precision, or cannot compile.
    """
    device = choose_device(options.device)
    if options.compile and device.type == "mps":
        raise UsageError("--compile: XLA does not run on Metal; measure without it")
    keras.utils.set_random_seed(options.seed)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    require_precision(device, options.precision)
    keras.config.set_dtype_policy(POLICIES[options.precision])
    return device


def choose_device(name: str) -> Device:
    """The first GPU, or else the CPU, for `auto`; else the device of that name."""
    gpu_type = "mps" if sys.platform == "darwin" else "cuda"
    if name == "auto":
        name = gpu_type if GPUS else "cpu"
    if name == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return Device("cpu")
    wanted, _, number = name.partition(":")
    index = int(number or 0)
    if wanted != gpu_type or index >= len(GPUS):
        problem = f"TensorFlow {tf.__version__} sees no such device here"
        raise UsageError(f"--device={name}: {problem}{'; ' if cuda_hint() else ''}{cuda_hint()}")
    tf.config.set_visible_devices(GPUS[index], "GPU")
    # Otherwise TensorFlow takes nearly all memory at once.
    tf.config.experimental.set_memory_growth(GPUS[index], True)
    return Device(wanted, index)


def cuda_hint() -> str:
    """What to install where there is an NVIDIA card that TensorFlow does not see; else nothing."""
    card = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")
    if GPUS or not card:
        return ""
    return (
        "TensorFlow does not see the NVIDIA card: its CUDA libraries are missing; install "
        "tensorflow[and-cuda] in an environment of its own, without PyTorch"
    )


def require_precision(device: Device, precision: str) -> None:
    """Raises UsageError unless `device` convolves and differentiates in `precision`."""
    if precision == "fp32":
        return
    try:
        with tf.device(device.name), tf.GradientTape() as tape:
            kernel = tf.ones((3, 3, 4, 4), DTYPES[precision])
            tape.watch(kernel)
            image = tf.nn.conv2d(tf.ones((1, 8, 8, 4), DTYPES[precision]), kernel, 1, "SAME")
        tape.gradient(image, kernel)
    except tf.errors.OpError:
        raise UsageError(f"--precision={precision}: {device.type} cannot do it; use fp32") from None


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
    if device.type == "cpu" and cuda_hint():
        tqdm.write(cuda_hint())
    machine = harness.machine.machine_facts()
    name = size = None
    if device.type == "cuda":
        details = tf.config.experimental.get_device_details(GPUS[device.index])
        name = details.get("device_name", "CUDA_GPU")
        size = card_bytes(name)
    return {
        **machine,
        "device": f"{device.type} ({name})" if name else device.type,
        "machine": harness.machine.machine_tag(machine, device.type, name, size),
        "framework": f"tensorflow {tf.__version__}, keras {keras.__version__}",
    }


def card_bytes(name: str) -> int | None:
    """Memory of the NVIDIA card of that name, from its driver, because TensorFlow does not tell."""
    query = "--query-gpu=name,memory.total"
    report = harness.machine.output_of("nvidia-smi", query, "--format=csv,noheader,nounits")
    for line in report.splitlines():
        card, _, mebibytes = line.rpartition(", ")
        if card == name and mebibytes.isdigit():
            return int(mebibytes) * 2**20
    return None


# Data


def in_memory_batches(features, labels, batch_size: int):
    """Shuffled batches of arrays (N, ...) and (N,) as a `tf.data.Dataset`.

    Indices are shuffled and batched, then a whole batch is gathered at once: nothing is done per
    sample that costs more than counting.
    """
    # On the host, because the pipeline runs there whichever device trains.
    with tf.device("/CPU:0"):
        features, labels = tf.constant(features), tf.constant(labels)
    indices = tf.data.Dataset.range(len(labels)).shuffle(len(labels)).batch(batch_size)
    batches = indices.map(lambda chosen: (tf.gather(features, chosen), tf.gather(labels, chosen)))
    return batches.prefetch(WARMUP_STEPS)


def without_autotuning(dataset):
    """The same `tf.data.Dataset`, whose iterators end at once.

    The thread that tunes a pipeline sleeps twice as long after every round, from 10 ms to a minute
    (`Model::OptimizeLoop` in tensorflow/core/framework/model.cc), and an iterator that ends waits
    for it: after an epoch of six seconds training stood still for up to five (measured with
    TensorFlow 2.21). Our pipelines have nothing to tune.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


# Measuring


class TimedFit(keras.callbacks.CallbackList):
    """Runs the clock while `model.fit` trains, and ends it when the time is up.

    Takes the place of Keras' own list of callbacks, which reads the loss after every step and so
    makes every step wait for the device. `steps_per_execution` stays 1: steps that are hidden in
    one execution would hide the edges of the windows too.
    """

    def __init__(self, model, clock: Clock):
        super().__init__(add_history=True, model=model)
        self.clock = clock
        self.loss = None

    def on_train_begin(self, logs=None):
        self.clock.start()

    def on_train_batch_end(self, batch, logs=None):
        """`batch` counts from 0 in every epoch."""
        rest = self.clock.samples_per_epoch - batch * self.clock.batch_size
        if self.clock.step(min(self.clock.batch_size, rest)):
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        self.loss = logs["loss"]

    def on_train_end(self, logs=None):
        self.clock.stop()


def measure_training(
    model, dataset, samples: int, device: Device, batch_size: int, options,
    warmup_steps: int = WARMUP_STEPS,
) -> dict:  # fmt: skip
    """Train a compiled classifier under the shared clock, then probe the device alone.

    Args:
        dataset: a `tf.data.Dataset` of one epoch: batches of features and of integer labels (N,).
        samples: of one epoch.
        warmup_steps: steps after the first one that the steady rate leaves out.

    Returns:
        The measured columns of a row.
    """
    if batch_size > samples:
        raise ValueError(f"batch size {batch_size} is larger than the {samples} training samples")
    clock = Clock(
        batch_size,
        samples,
        options.epochs,
        synchronize(model),
        options.max_seconds,
        energy_meter(device.type, device.index),
        warmup_steps,
        watch=Watch(device.type, device.index),
    )
    timed = TimedFit(model, clock)
    dataset = without_autotuning(dataset)
    model.fit(dataset, epochs=options.epochs, verbose=0, shuffle=False, callbacks=timed)
    row = clock.measurement()
    row["train_loss"] = float(timed.loss)
    row["peak_memory_gb"] = peak_memory_gb(device)
    with tf.device(device.name):
        ((features, labels),) = [map(tf.identity, batch) for batch in dataset.take(1)]

    def train_step():
        model.train_function([(features, labels)])
        return batch_size

    row["compute_samples_per_second"] = probe_device(train_step, batch_size, synchronize(model))
    if rate := row["samples_per_second"]:
        row["input_bound_percent"] = 100 * (1 - rate / row["compute_samples_per_second"])
        row["tflops_per_second"] = count_flops(model, features, labels) / batch_size * rate / 1e12
    return row


def synchronize(model):
    """A function that waits until the device has done all steps of `model`.

    It reads a small weight back, which the last step writes: that waits on Metal too.
    """
    weight = min(model.trainable_variables, key=lambda variable: math.prod(variable.shape))
    return weight.numpy


def peak_memory_gb(device: Device) -> float | None:
    """Peak allocation on the device, in 1e9 bytes; on the CPU this process' peak resident size.

    None where TensorFlow does not tell, as on Metal.
    """
    if device.type == "cpu":
        return harness.machine.peak_resident_gb()
    try:
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
    except (ValueError, RuntimeError, tf.errors.OpError):
        return None


# Floating-point operations


def count_flops(model, features, labels) -> int:
    """Operations of a forward and backward pass: matrix products and convolutions, from shapes.

    A multiplication and an addition are two operations. The pass is traced, not run; what no
    gradient depends on (such as the gradient of the first convolution's input) is not counted.
    """

    @tf.function
    def gradients(features, labels):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(features, labels, model(features, training=True))
        return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    graph = gradients.get_concrete_function(features, labels).graph
    total, seen = 0, set()
    waiting = [tensor.op for tensor in graph.outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name not in seen:
            seen.add(operation.name)
            total += flops(operation)
            waiting += [tensor.op for tensor in operation.inputs]
    return total


def flops(operation) -> int:
    """Operations of one node of a graph whose shapes are known; 0 if it multiplies nothing."""
    shapes = [tensor.shape for tensor in operation.inputs]
    if operation.type in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
        # All three multiply every element of the convolution's result with a filter's patch.
        kernel, result = {
            "Conv2D": (shapes[1], operation.outputs[0].shape),
            "Conv2DBackpropInput": (shapes[1], shapes[-1]),
            "Conv2DBackpropFilter": (operation.outputs[0].shape, shapes[-1]),
        }[operation.type]
        return 2 * math.prod(result) * math.prod(kernel[:3])
    if operation.type == "MatMul":
        shared = shapes[0][0 if operation.get_attr("transpose_a") else 1]
        return 2 * math.prod(operation.outputs[0].shape) * shared
    if operation.type.startswith("BatchMatMul"):
        shared = shapes[0][-2 if operation.get_attr("adj_x") else -1]
        return 2 * math.prod(operation.outputs[0].shape) * shared
    if operation.type == "Einsum" and len(shapes) == 2:
        terms = operation.get_attr("equation").decode().partition("->")[0].split(",")
        sizes = {}
        for term, shape in zip(terms, shapes, strict=True):
            sizes |= zip(term, shape, strict=True)
        return 2 * math.prod(sizes.values())
    return 0
