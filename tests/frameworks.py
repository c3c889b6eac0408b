"""What differs between the frameworks that test_frameworks.py holds to one contract.

The network is the same in all: two convolutions and a dense layer tell light images from dark ones.
A framework is imported when its class is called, because Keras takes one backend per process.
"""

import contextlib
import os
import types

import numpy as np

CARD = "Tesla T4"


class PyTorch:
    lacks = ()  # precisions that it does not do on the CPU
    is_lazy_here = False  # whether steps go on after they have returned, on the CPU too
    counts_threads = True

    def __init__(self):
        import torch

        import pytorch_test_computer_vision_cifar100 as script
        from harness.frameworks import pytorch

        self.torch, self.script, self.module = torch, script, pytorch
        self.start, self.facts = pytorch.start, pytorch.facts
        self.operations = {
            "product": (torch.Tensor, "__matmul__"),
            "convolution": (torch.nn.functional, "conv2d"),
        }
        self.no_kernel = RuntimeError("no such kernel")
        self.device = torch.device

    def batches(self, features, labels, batch_size):
        dataset = self.script.InMemoryImages(*map(self.torch.from_numpy, (features, labels)))
        return self.script.make_loader(dataset, batch_size, self.device("cpu"))

    def training(self, images, labels, batch_size, device, options):
        from tiny_training import image_loss

        nn = self.torch.nn
        loader = self.batches(np.moveaxis(images, 3, 1), labels, batch_size)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 2, stride=2), nn.Flatten(),
            nn.Linear(dense_inputs(images), 2),
        )  # fmt: skip
        fused = self.module.has_fused_adam(device, options.precision)
        adam = self.torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
        return self.module.Training(model, loader, image_loss, adam, device, options)

    def card(self, patch, capability):
        """Pretend that there is an NVIDIA card, whose products are exact; its device."""
        major, minor = capability
        card = types.SimpleNamespace(name=CARD, total_memory=0, major=major, minor=minor)
        patch.setattr(self.torch.cuda, "get_device_properties", lambda device: card)
        patch.setattr(self.module, "fine_products", lambda *_: [])
        return self.device("cuda")

    def count_waits(self, patch, waits):
        """Note in `waits` whenever the host waits; in trainings that are built from now on."""
        # The processor itself is never waited for.
        patch.setattr(self.module, "synchronize", lambda device: lambda: waits.append(1))
        read = self.torch.Tensor.item

        def counted(tensor):
            # Of loaders, which read their seed, it is a whole number.
            waits.extend([1] * tensor.is_floating_point())
            return read(tensor)

        patch.setattr(self.torch.Tensor, "item", counted)

    def wait(self):
        self.torch.zeros(1).item()

    @contextlib.contextmanager
    def broken_compiler(self, patch):
        """Nothing that is built in it is compiled, whoever asks for it."""
        from torch._dynamo.utils import counters

        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        counters.clear()
        yield

    def watch_resets(self, patch, resets):
        """Note in `resets` the devices whose peak of memory is counted anew."""
        patch.setattr(self.torch.cuda, "reset_peak_memory_stats", resets.append)

    def hide_memory(self, patch):
        """The device whose memory is unknown from now on, for each way in which it can be."""
        for error in (RuntimeError, AttributeError):
            patch.setattr(self.torch.accelerator, "max_memory_allocated", raising(error("unknown")))
            yield self.device("mps")

    def watch_copies(self, patch, training, copies):
        """Note in `copies` how a step's batch comes to the device, at every copy."""
        exact, device = self.torch.Tensor.to, training.device

        def counted(part, *arguments, **keywords):
            if arguments == (device,):
                copies.append((part.device.type, *keywords.items()))
            return exact(part, *arguments, **keywords)

        patch.setattr(self.torch.Tensor, "to", counted)


class MLX:
    lacks = ()
    is_lazy_here = True
    counts_threads = False

    def __init__(self):
        import mlx.core as mx

        from harness.frameworks import mlx

        self.mx, self.module, self.device = mx, mlx, mlx.Device
        self.start = mlx.start
        self.operations = {"product": (mx.array, "__matmul__"), "convolution": (mx, "conv2d")}
        self.no_kernel = ValueError("no such kernel")

    def facts(self, device):
        return device.columns("mlx")

    def batches(self, features, labels, batch_size):
        return self.module.in_memory_batches(features, labels, batch_size)()

    def training(self, images, labels, batch_size, device, options):
        import mlx.nn as nn
        import mlx.optimizers as optim

        mx, mlx = self.mx, self.module

        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.convolutions = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 2, stride=2)]
                self.dense = nn.Linear(dense_inputs(images), 2)

            def __call__(self, pixels):
                hidden = pixels.astype(self.dense.weight.dtype)
                for layer in self.convolutions:
                    hidden = layer(hidden)
                return self.dense(hidden.reshape(len(hidden), -1))

        def loss(model, pixels, labels):
            return mlx.cross_entropy(model(pixels.astype(mx.float32) / 127.5 - 1), labels)

        batches = mlx.in_memory_batches(images, labels, batch_size)
        adam = optim.Adam(learning_rate=1e-2, bias_correction=True)
        return mlx.Training(Network(), loss, adam, batches, device, options)

    def card(self, patch, capability):
        major, minor = capability
        told = {"device_name": CARD, "compute_capability_major": major,
                "compute_capability_minor": minor}  # fmt: skip
        patch.setattr(self.mx, "is_available", lambda kind: True)
        patch.setattr(self.mx, "device_count", lambda kind: 1)
        patch.setattr(self.mx.metal, "is_available", lambda: False)
        patch.setattr(self.mx, "set_default_device", lambda device: None)
        patch.setattr(self.mx, "device_info", lambda device: told)
        patch.setattr(self.module, "fine_products", lambda dtype: [])
        return self.module.choose_device("cuda")

    def second_of_two_cards(self, patch):
        """What is chosen for `cuda:1` where cards are called `card 0` and `card 1`."""
        chosen = []
        self.card(patch, (8, 0))
        patch.setattr(self.mx, "device_count", lambda kind: 2)
        patch.setattr(self.mx, "Device", lambda kind, index: index)
        patch.setattr(self.mx, "set_default_device", chosen.append)
        patch.setattr(self.mx, "default_device", lambda: chosen[-1])
        patch.setattr(self.mx, "device_info", lambda index: {"device_name": f"card {index}"})
        return self.module.choose_device("cuda:1")

    def count_waits(self, patch, waits):
        evaluate = self.mx.eval
        patch.setattr(self.mx, "eval", lambda *arrays: (waits.append(1), evaluate(*arrays)))

    def wait(self):
        self.mx.eval(self.mx.zeros(1))

    def make_steps_lazier(self, patch):
        """Nothing evaluates a step any more."""
        patch.setattr(self.mx, "async_eval", lambda *_: None)

    @contextlib.contextmanager
    def broken_compiler(self, patch):
        self.mx.disable_compile()
        try:
            yield
        finally:
            self.mx.enable_compile()


class OnKeras:
    """What is the same on all backends of Keras."""

    lacks = ()
    is_lazy_here = False

    def keras_model(self, images, options, compiled):
        import keras
        from keras import layers

        inputs = keras.Input(images.shape[1:], dtype="uint8")
        hidden = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
        hidden = layers.Conv2D(5, 2, strides=2)(layers.Conv2D(4, 3)(hidden))
        dense = layers.Dense(2, activation="softmax", dtype="float32")
        model = keras.Model(inputs, dense(layers.Flatten()(hidden)))
        adam = keras.optimizers.Adam(1e-2)
        model.compile(adam, "sparse_categorical_crossentropy", jit_compile=compiled)
        return model

    def count_waits(self, patch, waits):
        from keras.src.utils import python_utils

        # By this function Keras reads a step's loss.
        read = python_utils.pythonify_logs

        def counted(logs):
            waits.extend([1] * bool(logs))
            return read(logs)

        patch.setattr(python_utils, "pythonify_logs", counted)

    def wait(self):
        from keras.src.utils import python_utils

        python_utils.pythonify_logs({"loss": 1.0})


class TensorFlow(OnKeras):
    counts_threads = True

    def __init__(self):
        from harness.frameworks import tensorflow

        self.module, self.tf, self.device = tensorflow, tensorflow.tf, tensorflow.Device
        self.start, self.facts = tensorflow.start, tensorflow.facts
        self.operations = {
            "product": (type(self.tf.zeros(1)), "__matmul__"),
            "convolution": (self.tf.nn, "conv2d"),
        }
        self.no_kernel = self.tf.errors.UnimplementedError(None, None, "no such kernel")

    def batches(self, features, labels, batch_size):
        return self.module.in_memory_batches(features, labels, batch_size)

    def training(self, images, labels, batch_size, device, options):
        model = self.keras_model(images, options, options.compile)
        return self.module.fit(model, self.batches(images, labels, batch_size), device)

    def card(self, patch, capability):
        told = {"device_name": CARD, "compute_capability": capability}
        patch.setattr(self.module, "GPUS", ["/physical_device:GPU:0"])
        patch.setattr(self.tf.config.experimental, "get_device_details", lambda gpu: told)
        patch.setattr(self.module, "fine_products", lambda dtype: [])
        return self.module.card(0)

    def second_of_two_cards(self, patch):
        visible, config = [], self.tf.config
        patch.setattr(self.module, "GPUS", ["card 0", "card 1"])
        patch.setattr(config, "set_visible_devices", lambda cards, kind: visible.extend(cards))
        patch.setattr(config.experimental, "set_memory_growth", lambda card, grows: None)
        patch.setattr(
            config.experimental, "get_device_details", lambda card: {"device_name": visible[0]}
        )
        return self.module.choose_device("cuda:1")

    def count_waits(self, patch, waits):
        import keras

        super().count_waits(patch, waits)
        read = keras.Variable.numpy
        patch.setattr(keras.Variable, "numpy", lambda weight: waits.append(1) or read(weight))

    @contextlib.contextmanager
    def broken_compiler(self, patch):
        import keras

        always = property(lambda model: True, lambda model, value: None)
        patch.setattr(keras.Model, "run_eagerly", always)
        yield

    def watch_resets(self, patch, resets):
        patch.setattr(
            self.tf.config.experimental, "reset_memory_stats",
            lambda card: resets.append(self.device("cuda") if card == "GPU:0" else card),
        )  # fmt: skip

    def hide_memory(self, patch):
        for answer in (raising(ValueError("No matching devices found")), lambda _: {"peak": 0}):
            patch.setattr(self.tf.config.experimental, "get_memory_info", answer)
            yield self.device("mps")

    def watch_copies(self, patch, training, copies):
        model, kind = training.model, self.tf.data.Iterator
        model.make_train_function()
        exact = model.train_function
        # A batch from a host iterator, and a loss that comes back through one.
        model.train_function = lambda data: copies.append(isinstance(data, kind)) or exact(data)


class KerasBackend(OnKeras):
    counts_threads = False

    def start(self, options):
        from harness.frameworks import keras

        return keras.start(self.backend, options)

    def facts(self, device):
        from harness.frameworks import keras

        return keras.module_of(self.backend).facts(device)

    def training(self, images, labels, batch_size, device, options):
        from harness.frameworks import keras

        model = self.keras_model(images, options, keras.compiles(self.backend, options))
        return keras.fit_in_memory(model, images, labels, device, batch_size)


class KerasOnTorch(KerasBackend):
    backend = "torch"
    counts_threads = True

    def __init__(self):
        self.pytorch = PyTorch()
        self.operations, self.no_kernel = self.pytorch.operations, self.pytorch.no_kernel
        self.device = self.pytorch.device
        for name in ("module", "card", "broken_compiler", "watch_resets", "hide_memory"):
            setattr(self, name, getattr(self.pytorch, name))

    def count_waits(self, patch, waits):
        super().count_waits(patch, waits)
        patch.setattr(self.module, "synchronize", lambda device: lambda: waits.append(1))


class KerasOnJax(KerasBackend):
    backend = "jax"
    lacks = ("fp16",)
    is_lazy_here = True

    def __init__(self):
        import jax

        from harness.frameworks import keras_jax

        self.jax, self.module, self.device = jax, keras_jax, keras_jax.Device
        product = type(jax.numpy.zeros(1)), "__matmul__"
        self.operations = {"product": product, "convolution": (jax.lax, "conv")}
        self.no_kernel = ValueError("no such kernel")

    def card(self, patch, capability):
        told = types.SimpleNamespace(
            device_kind=CARD, compute_capability=".".join(map(str, capability))
        )
        patch.setattr(self.jax, "devices", lambda kind: [told])
        patch.setattr(self.jax.nn, "dot_product_attention", lambda query, *_: query)
        patch.setattr(self.module, "fine_products", lambda dtype: [])
        return self.module.choose_device("cuda")

    def second_of_two_cards(self, patch):
        cards = [
            types.SimpleNamespace(device_kind=f"card {index}", compute_capability="8.0")
            for index in (0, 1)
        ]
        patch.setattr(self.jax, "devices", lambda kind: cards)
        return self.module.choose_device("cuda:1")

    def count_waits(self, patch, waits):
        super().count_waits(patch, waits)
        wait = self.jax.block_until_ready
        patch.setattr(self.jax, "block_until_ready", lambda tree: waits.append(1) or wait(tree))

    def make_steps_lazier(self, patch):
        """They are lazy as they are."""

    @contextlib.contextmanager
    def broken_compiler(self, patch):
        with self.jax.disable_jit():
            yield

    def hide_memory(self, patch):
        silent = types.SimpleNamespace(memory_stats=lambda: None)
        patch.setattr(self.jax, "devices", lambda kind: [silent])
        yield self.device("cuda")


def dense_inputs(images) -> int:
    """Numbers that the two convolutions make of an image."""
    height, width = (((side - 2) - 2) // 2 + 1 for side in images.shape[1:3])
    return 5 * height * width


def raising(error: Exception):
    """A function that raises it, whatever it is called with."""

    def function(*_, **__):
        raise error

    return function


FRAMEWORKS = {
    "pytorch": PyTorch, "tensorflow": TensorFlow, "mlx": MLX,
    "keras_torch": KerasOnTorch, "keras_jax": KerasOnJax,
}  # fmt: skip
# Keras' backends are held to the contract in processes of their own, by keras_backend.py.
HERE = os.environ.get("FRAMEWORK", "pytorch tensorflow mlx").split()
