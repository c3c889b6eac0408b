"""The one TensorFlow protocol: device, precision, timed `model.fit`, device-only probe, FLOPs."""

import contextlib
import importlib.metadata
import math
import os
import sys
from dataclasses import replace

from tqdm import tqdm

import harness.cores
from harness.clock import WARMUP_STEPS
from harness.data import choose_data
from harness.device import FINE, Device, choose, choose_several, prove_precision
from harness.nvidia import card_bytes, has_card
from harness.process import UsageError, UserError

# All are read once, when the libraries load.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # errors only
os.environ["KERAS_BACKEND"] = "tensorflow"
# TensorFlow itself would take all of the affinity's cores, whatever a container's share is.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(harness.cores.usable_cores()))


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

import harness.frameworks.fit  # noqa: E402
from harness.frameworks.tensorflow_flops import count_flops  # noqa: E402

DTYPES = {"fp32": tf.float32, "bf16": tf.bfloat16, "fp16": tf.float16}


# Device


def start(options) -> Device:
    """Seed, choose the device, and make sure that it does what is asked for.

    `fp32` is true float32: TF32, which NVIDIA cards otherwise use, is off. Keras would compile with
    XLA wherever it can; here it does so for --compile only (`jit_compile=options.compile`). What
    the user's own keras.json says of number format and image layout is not heeded.

    Raises:
        UsageError: the device is missing, cannot compute in the precision, or cannot compile.
    """
    device = choose_device(options.device, vars(options).get("num_devices", 1))  # Keras' have one
    if options.compile and device.type == "mps":
        raise UsageError("--compile: XLA does not run on Metal; measure without it")
    keras.utils.set_random_seed(options.seed)
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    require_precision(device, options.precision)
    keras.config.set_dtype_policy(harness.frameworks.fit.POLICIES[options.precision])
    return device


def choose_device(name: str, count: int | str = 1) -> Device:
    """The first GPU, or else the CPU, for `auto`; else the device of that name.

    Metal, which TensorFlow calls GPU:0 too, is `mps`.

    Args:
        count: how many of the kind train together, or `all`; a processor then stands for several.
    """
    seen = {gpu_type(): len(GPUS), "cpu": 1 if count == 1 else harness.cores.usable_cores()}
    if count == 1:
        device = choose(name, seen, f"TensorFlow {tf.__version__}", cuda_hint())
    else:
        device = choose_several(name, count, seen)
    chosen = [] if device.type == "cpu" else GPUS[device.index : device.index + device.count]
    tf.config.set_visible_devices(chosen, "GPU")
    for gpu in chosen:
        # Otherwise TensorFlow takes nearly all memory at once.
        tf.config.experimental.set_memory_growth(gpu, True)
    if device.type == "cpu" and device.count > 1:
        (processor,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * device.count
        tf.config.set_logical_device_configuration(processor, parts)
    return replace(card(device.index), count=device.count) if device.type == "cuda" else device


def card(index: int) -> Device:
    """A CUDA card as TensorFlow names it."""
    details = tf.config.experimental.get_device_details(GPUS[index])
    name, capability = details.get("device_name", "CUDA_GPU"), details.get("compute_capability")
    return Device("cuda", index, name, card_bytes(index), capability)


def places(device: Device) -> list[str]:
    """The device as `tf.device` wants it, or all of several; only the chosen cards are visible."""
    kind = "CPU" if device.type == "cpu" else "GPU"
    return [f"/{kind}:{number}" for number in range(device.count)]


def on_all(device: Device):
    """The context in which a model is built: its weights on each device, gradients averaged."""
    if device.count == 1:
        return contextlib.nullcontext()
    return tf.distribute.MirroredStrategy(places(device)).scope()


def gpu_type() -> str:
    return "mps" if sys.platform == "darwin" else "cuda"


def cuda_hint() -> str:
    """What to install where there is an NVIDIA card that TensorFlow does not see; else nothing."""
    if GPUS or not has_card():
        return ""
    return (
        "TensorFlow does not see the NVIDIA card: its CUDA libraries are missing; install "
        "tensorflow[and-cuda] in an environment of its own, without PyTorch"
    )


def require_precision(device: Device, precision: str) -> None:
    """Raises UsageError unless `device` itself does what a training needs in `precision`."""

    def products() -> list:
        results = []
        for place in places(device):
            with tf.device(place):
                results += fine_products(DTYPES[precision])
        return results

    # Otherwise the processor quietly does what the device has no kernel for.
    softly = tf.config.get_soft_device_placement()
    tf.config.set_soft_device_placement(False)
    try:
        prove_precision(device, precision, products, (tf.errors.OpError,))
    finally:
        tf.config.set_soft_device_placement(softly)


def fine_products(dtype: tf.DType) -> list:
    """The products that `prove_precision` asks for, as NumPy arrays.

    They are differentiated too; a batch normalization follows, as in most networks.
    """
    fine = tf.constant(FINE, dtype)
    matrix, images = tf.fill((512, 512), fine), tf.fill((4, 16, 16, 64), fine)
    kernel, ones = tf.ones((3, 3, 64, 64), dtype), tf.ones((512, 512), dtype)
    scale = tf.ones(64)  # statistics are float32 in every precision
    with tf.GradientTape() as tape:
        tape.watch([kernel, ones])
        product, convolved = matrix @ ones, tf.nn.conv2d(images, kernel, 1, "VALID")
        normalized, *_ = tf.compat.v1.nn.fused_batch_norm(convolved, scale, scale)
    tape.gradient([product, normalized], [ones, kernel])
    return [(product / 512).numpy(), (convolved / (3 * 3 * 64)).numpy()]


def prepare(options, fetch) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share.

    Args:
        fetch: `fetch(options)` brings the real data; raises DataUnreachable where it cannot.
    """
    device = start(options)
    data = choose_data(options.data, lambda: fetch(options))
    return facts(device) | {"data": data, "num_devices": device.count}


def facts(device: Device) -> dict:
    """The machine columns of a row, of the device that is really used."""
    if device.type == "cpu" and cuda_hint():
        tqdm.write(cuda_hint())
    columns = device.columns(f"tensorflow {tf.__version__}, keras {keras.__version__}")
    return columns | {"threads": int(os.environ["TF_NUM_INTRAOP_THREADS"])}


# Data


def in_memory_batches(features, labels, batch_size: int):
    """Shuffled full batches of arrays (N, ...) and (N,) as a `tf.data.Dataset`.

    Indices are shuffled and batched, then a whole batch is gathered at once: nothing is done per
    sample that costs more than counting.
    """
    # On the host, because the pipeline runs there whichever device trains.
    with tf.device("/CPU:0"):
        features, labels = tf.constant(features), tf.constant(labels)
    indices = tf.data.Dataset.range(len(labels)).shuffle(len(labels))
    indices = indices.batch(batch_size, drop_remainder=True)
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


class Fit(harness.frameworks.fit.Fit):
    def __init__(self, model, data: dict, device: Device):
        super().__init__(model, data, device)
        # The last step writes it; reading it back waits on Metal too.
        self.smallest = min(model.trainable_variables, key=lambda v: math.prod(v.shape))

    @staticmethod
    def batches(features, labels, batch_size: int) -> dict:
        return fit_arguments(in_memory_batches(features, labels, batch_size))

    def full_batch(self):
        ((features, labels),) = self.data["x"].take(1)
        return features, labels

    def synchronize(self) -> None:
        self.smallest.numpy()

    def placed_on(self) -> str:
        kinds = {tf.DeviceSpec.from_string(v.value.device).device_type for v in self.model.weights}
        return " and ".join(sorted("cpu" if kind == "CPU" else gpu_type() for kind in kinds))

    def make_update(self, features, labels):
        # Through an iterator, as in the run: there a step's batch comes from the host, and its loss
        # goes back to it, which is none of the pipeline's doing.
        ready = without_autotuning(tf.data.Dataset.from_tensors((features, labels)).repeat())
        shared = iter(self.model.distribute_strategy.experimental_distribute_dataset(ready))
        return lambda: self.model.train_function(shared)

    def count_flops(self, features, labels) -> int:
        return count_flops(self.model, features, labels)

    def reset_peak_memory(self) -> None:
        if self.device.type == "cuda":
            for number in range(self.device.count):
                tf.config.experimental.reset_memory_stats(f"GPU:{number}")

    def peak_memory_gb(self) -> float | None:
        """Of several devices the largest; on Metal TensorFlow says 0."""
        try:
            cards = [f"GPU:{number}" for number in range(self.device.count)]
            peaks = [tf.config.experimental.get_memory_info(card)["peak"] for card in cards]
            return max(peaks) / 1e9 or None
        except (ValueError, RuntimeError, tf.errors.OpError):
            return None


def fit_arguments(dataset) -> dict:
    """What `model.fit` trains on, as its arguments."""
    return {"x": without_autotuning(dataset), "shuffle": False}


def fit(model, dataset, device: Device) -> Fit:
    """The training of a compiled classifier; see `harness.frameworks.training`.

    Args:
        dataset: a `tf.data.Dataset` of one epoch: batches of features and of integer labels (N,),
            each for all devices together.
    """
    return Fit(model, fit_arguments(dataset), device)
