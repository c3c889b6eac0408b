# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "torch>=2.11", "jax>=0.10",
#   "tensorflow==2.18.1; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow-metal==1.2.0; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow>=2.18.1,<2.22; sys_platform == 'linux'",
#   "keras>=3.12", "numpy", "filelock", "nvidia-ml-py>=12.535", "packaging", "pandas", "psutil",
#   "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""Which backend of Keras trains a ResNet50 on CIFAR100 fastest on this machine?

The same code runs on TensorFlow, PyTorch and JAX, as `model.fit` does it there: JAX compiles the
step, the others do for --compile.
Inside the clock: gathering a batch from memory, moving it to the device, forward and backward pass,
Adam's update. Outside: imports, download, building the model, evaluation (there is none).
Model: Keras' ResNet50 with 100 classes, untrained. Data: 50,000 images of 32x32x3.

    python keras_test_computer_vision_cifar100.py --epochs=1 --batch_sizes="32"
"""

import utils
from harness.cifar100 import NUM_CLASSES, SAMPLES, fetch, load_data

BACKENDS = ("tensorflow", "torch", "jax")
EXPERIMENT = utils.Experiment(
    title="Keras 3, ResNet50, CIFAR100",
    place=70,
    chart="keras_cv_resnet50_cifar100",
    description=__doc__,
    backend="keras",
    task="cv",
    dataset="cifar100",
    model="resnet50",
    input_size=32,
    epochs=5,
    varied=(
        utils.Varied(
            "keras_backend", "backends", ", ".join(BACKENDS), "{}", "backend",
            choices=BACKENDS, in_label=True,
        ),
        *utils.batch_sizes("16, 32, 64, 128, 256, 512, 1024"),
    ),
    samples=SAMPLES,
    classes=NUM_CLASSES,
    quick={"backends": "jax", "batch_sizes": "32"},
)  # fmt: skip


def build_model(jit_compile: bool):
    """ResNet50 that takes uint8 images (N, 32, 32, 3), so that they are scaled on the device."""
    import keras

    from harness.models.resnet50 import resnet50

    model = resnet50(32, NUM_CLASSES)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss="sparse_categorical_crossentropy",
        jit_compile=jit_compile,
    )
    return model


def prepare(options) -> dict:
    """Settle devices and data once per sweep; returns the columns that rows share."""
    from harness.frameworks import keras

    return keras.prepare(options, fetch)


def measure(backend: str, batch_size: int, options) -> dict:
    """Train ResNet50 on one backend at one batch size; returns its row's measured columns."""
    from harness.frameworks import keras
    from harness.frameworks.training import measure_training

    device = keras.start(backend, options)
    images, labels = load_data(options)
    model = build_model(keras.compiles(backend, options))
    training = keras.fit_in_memory(model, images, labels, device, batch_size)
    return measure_training(training, len(labels), batch_size, options)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
