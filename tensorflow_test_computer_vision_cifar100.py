# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "tensorflow==2.18.1; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow-metal==1.2.0; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow>=2.18.1,<2.22; sys_platform == 'linux'",
#   "keras>=3.12", "numpy", "filelock", "nvidia-ml-py>=12.535", "packaging", "pandas", "psutil",
#   "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""How fast does this machine train a ResNet50 on CIFAR100 with TensorFlow?

Inside the clock: gathering a batch from memory, moving it to the device, forward and backward pass,
Adam's update. Outside: imports, download, building the model, evaluation (there is none).
Model: Keras' ResNet50 with 100 classes, untrained. Data: 50,000 images of 32x32x3.

    python tensorflow_test_computer_vision_cifar100.py --epochs=1 --batch_sizes="32"
"""

import utils
from harness.cifar100 import NUM_CLASSES, SAMPLES, fetch, load_data

EXPERIMENT = utils.Experiment(
    title="TensorFlow, ResNet50, CIFAR100",
    place=40,
    chart="tensorflow_cv_resnet50_cifar100",
    description=__doc__,
    backend="tensorflow",
    task="cv",
    dataset="cifar100",
    model="resnet50",
    input_size=32,
    epochs=5,
    varied=utils.batch_sizes("16, 32, 64, 128, 256, 512, 1024"),
    samples=SAMPLES,
    classes=NUM_CLASSES,
    quick={"batch_sizes": "32"},
)


def build_model(options):
    """ResNet50 that takes uint8 images (N, 32, 32, 3), so that they are scaled on the device."""
    import keras

    from harness.models.resnet50 import resnet50

    model = resnet50(32, NUM_CLASSES)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss="sparse_categorical_crossentropy",
        jit_compile=options.compile,
    )
    return model


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    from harness.frameworks import tensorflow

    return tensorflow.prepare(options, fetch)


def measure(batch_size: int, options) -> dict:
    """Train ResNet50 at one batch size; returns the measured columns of its row."""
    from harness.frameworks import tensorflow
    from harness.frameworks.training import measure_training

    device = tensorflow.start(options)
    images, labels = load_data(options)
    dataset = tensorflow.in_memory_batches(images, labels, batch_size * device.count)
    with tensorflow.on_all(device):
        model = build_model(options)
    training = tensorflow.fit(model, dataset, device)
    return measure_training(training, len(labels), batch_size, options, devices=device.count)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
