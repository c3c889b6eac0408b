"""Keras on JAX: its device and precision, and what `fit.Fit` asks of a backend."""

import math
import os
from dataclasses import replace

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

import harness.frameworks.fit
from harness.device import FINE, Device, choose, prove_precision
from harness.nvidia import card_bytes
from harness.process import UsageError

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
STATE = ("trainable_variables", "non_trainable_variables", "optimizer_variables",
         "metrics_variables")  # fmt: skip


# Device


def start(options) -> Device:
    """Choose the device, and make sure that it does the precision asked for.

    `fp32` is true float32: NVIDIA cards would otherwise multiply in TF32.

    Raises:
        UsageError: the device is missing, or cannot compute in the precision.
    """
    device = choose_device(options.device)
    jax.config.update("jax_default_device", its_own(device))
    if options.precision == "fp32":
        jax.config.update("jax_default_matmul_precision", "highest")
    require_precision(device, options.precision)
    return device


def choose_device(name: str) -> Device:
    """CUDA, or else the CPU, for `auto`; else the device of that name."""
    seen = {kind: count_of(kind) for kind in ("cuda", "cpu")}
    allowed = os.environ.get("JAX_PLATFORMS")
    hint = f"JAX_PLATFORMS={allowed} allows no other: unset it" if allowed else ""
    device = choose(name, seen, f"JAX {jax.__version__}", hint)
    if device.type == "cpu":
        return device
    card = its_own(device)
    return replace(
        device, name=card.device_kind, memory_bytes=card_bytes(device.index),
        capability=tuple(map(int, card.compute_capability.split("."))),
    )  # fmt: skip


def its_own(device: Device) -> jax.Device:
    return jax.devices(device.type)[device.index]


def count_of(kind: str) -> int:
    """How many devices of a kind JAX sees."""
    try:
        return len(jax.devices(kind))
    except (RuntimeError, AssertionError):  # no such backend; none of all in JAX_PLATFORMS
        return 0


def require_precision(device: Device, precision: str) -> None:
    """Raises UsageError unless the device multiplies, convolves and attends in `precision`."""

    def products() -> list[jax.Array]:
        dtype = DTYPES[precision]
        try:
            tokens = jax.numpy.ones((1, 8, 1, 8), dtype)
            attention = jax.jit(jax.nn.dot_product_attention)  # compiled, as a training is
            jax.block_until_ready(attention(tokens, tokens, tokens))
            return jax.block_until_ready(fine_products(dtype))
        except (jax.errors.JaxRuntimeError, ValueError):
            raise UsageError(
                f"--precision={precision}: JAX cannot do it on {device.type}; use fp32 or another "
                "of the --backends"
            ) from None

    prove_precision(device, precision, products)


def fine_products(dtype) -> list[jax.Array]:
    """The products that `prove_precision` asks for."""
    matrix, images = (jax.numpy.full(shape, FINE, dtype) for shape in ((512, 512), (4, 64, 16, 16)))
    kernel = jax.numpy.ones((64, 64, 3, 3), dtype)
    convolved = jax.lax.conv(images, kernel, (1, 1), "VALID")
    return [matrix @ jax.numpy.ones_like(matrix) / 512, convolved / (3 * 3 * 64)]


def facts(device: Device) -> dict:
    """The machine columns of a row; JAX does not tell how many threads it takes."""
    return device.columns(f"jax {jax.__version__}")


# Measuring


class Fit(harness.frameworks.fit.Fit):
    def placed_on(self) -> str:
        platforms = {device.platform for v in self.model.weights for device in v.value.devices()}
        return " and ".join(sorted("cuda" if name == "gpu" else name for name in platforms))

    def synchronize(self) -> None:
        """Wait until the device has done all steps.

        While `fit` trains, the live state is not in the model: its variables are empty until the
        epoch ends, and reading one makes up a new initial value (`JAXTrainer.fit` in
        keras/src/backend/jax/trainer.py). All of the state is waited for, because on the CPU a
        step's results are not always ready at the same time.
        """
        if self.model._jax_state_synced:
            variables = [*self.model.variables, *self.model.optimizer.variables]
            groups = [[variable.value for variable in variables]]
        else:
            groups = self.model._jax_state.values()
        # In plain lists: JAX would take Keras' own kind of list for a leaf, and wait for nothing.
        jax.block_until_ready([list(group) for group in groups])

    def require_compiled(self) -> None:
        if self.model.jit_compile and jax.config.jax_disable_jit:
            raise RuntimeError("--compile: JAX runs every operation by itself (JAX_DISABLE_JIT)")

    def make_update(self, features, labels):
        # The state goes from step to step as in `JAXTrainer.fit`, and does not come back.
        model, everything = self.model, dict.fromkeys(STATE, True)
        state = model._get_jax_state(**everything, purge_model_variables=True)

        def show_state():
            model._jax_state = dict(zip(STATE, state, strict=True))
            model._jax_state_synced = False

        def update():
            nonlocal state
            _, state = model.train_function(state, iter([(features, labels)]))
            show_state()

        show_state()
        return update

    def count_flops(self, features, labels) -> int:
        # Traced, not run. XLA's own `cost_analysis` would count what is done element by element.
        model = self.model

        def loss(trainable, non_trainable, optimizer, metrics):
            return model.compute_loss_and_updates(
                trainable, non_trainable, metrics, features, labels, None,
                training=True, optimizer_variables=optimizer,
            )  # fmt: skip

        groups = (model.trainable_variables, model.non_trainable_variables,
                  model.optimizer.variables, model.metrics_variables)  # fmt: skip
        shapes = [[jax.ShapeDtypeStruct(v.shape, v.dtype) for v in group] for group in groups]
        return flops(jax.make_jaxpr(jax.grad(loss, has_aux=True))(*shapes).jaxpr)

    def reset_peak_memory(self) -> None:
        """Nothing: JAX cannot count the peak of memory anew."""

    def peak_memory_gb(self) -> float | None:
        peak = (its_own(self.device).memory_stats() or {}).get("peak_bytes_in_use")
        return peak and peak / 1e9


def flops(jaxpr: Jaxpr) -> int:
    """Operations of a traced function without loops."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += flops_of_product(equation)
        elif equation.primitive.name == "conv_general_dilated":
            total += flops_of_convolution(equation)
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(part, ClosedJaxpr):
                    total += flops(part.jaxpr)
                elif isinstance(part, Jaxpr):
                    total += flops(part)
    return total


def flops_of_product(equation) -> int:
    left, (result,) = equation.invars[0].aval.shape, equation.outvars
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * math.prod(result.aval.shape) * math.prod(left[axis] for axis in contracted)


def flops_of_convolution(equation) -> int:
    """Every place of the output meets every tap of the kernel.

    Not where the input was filled up with zeros, as in the gradient of a strided convolution: there
    it is every place of the input.
    """
    image, kernel = (variable.aval.shape for variable in equation.invars)
    result = equation.outvars[0].aval.shape
    of_image, _, of_result = equation.params["dimension_numbers"]
    filled_up = math.prod(equation.params["lhs_dilation"]) > 1
    batch, _, *places = (
        [image[i] for i in of_image] if filled_up else [result[i] for i in of_result]
    )
    return 2 * batch * math.prod(places) * math.prod(kernel)
