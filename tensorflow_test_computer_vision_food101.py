# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "tensorflow==2.18.1; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow-metal==1.2.0; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow-metadata<1.18; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow>=2.18.1,<2.22; sys_platform == 'linux'",
#   "keras>=3.12", "tensorflow-datasets>=4.9.9", "importlib_resources", "numpy", "pillow",
#   "filelock", "nvidia-ml-py>=12.535", "packaging", "pandas", "psutil", "py-cpuinfo", "scipy",
#   "tqdm",
# ]
# ///
"""How fast does this machine train a ResNet50 on Food101 with TensorFlow?

Inside the clock: reading JPEG files, decoding and resizing them to 224x224 in the threads of
`tf.data`, moving a batch to the device, forward and backward pass, Adam's update. Outside: imports,
download, building the model, evaluation (there is none).
Model: Keras' ResNet50 with 101 classes, untrained. Data: 75,750 photographs of up to 512x512
pixels, 3.8 GB. The synthetic twin repeats 512 pictures that cost the same to decode, and reads
them from memory.

    python tensorflow_test_computer_vision_food101.py --epochs=1 --batch_sizes="32"
"""

import shutil

import harness.data
import harness.machine
import utils

EXPERIMENT = utils.Experiment(
    title="TensorFlow, ResNet50, Food101",
    place=50,
    chart="tensorflow_cv_resnet50_food101",
    description=__doc__,
    backend="tensorflow",
    task="cv",
    dataset="food101",
    model="resnet50",
    input_size=224,
    epochs=3,
    varied=utils.batch_sizes("32, 64, 128"),
    samples=75_750,
    classes=101,
    quick={"batch_sizes": "4"},
)
DISK_BYTES = 16e9  # the archive, its files, and the TFRecords made of them: 5 GB each
SHUFFLE_BUFFER = 1000  # photographs; TensorFlow Datasets has shuffled them on disk already
PREFETCHED_BATCHES = 4


def food101(options):
    """The builder of TensorFlow Datasets' Food101, with all its files in the data directory.

    Raises:
        DataUnreachable: it is neither in the data directory nor to be had from its server.
        UserError: it cannot be put into the data directory, or the archive is damaged.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError

    folder = options.data_dir / "tensorflow_datasets"
    builder = tfds.builder("food101", data_dir=folder)
    if builder.data_path.exists():
        return builder
    ((url, archive),) = builder.url_infos.items()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < DISK_BYTES:
            raise utils.UserError(
                f"--data_dir={options.data_dir}: Food101 needs {DISK_BYTES / 1e9:.0f} GB of disk"
            )
        # Fetched by ourselves: the builder's own download starts anew when it broke off, and waits
        # for ever when it stalls.
        downloads = harness.data.download(url, archive.checksum, folder / "downloads").parent
        config = tfds.download.DownloadConfig(manual_dir=downloads)
        builder.download_and_prepare(download_config=config)
    except (ExtractError, NonMatchingChecksumError, OSError, tf.errors.OpError) as error:
        raise harness.data.unreadable("Food101", error, folder, options.data_dir) from None
    return builder


def load_data(options):
    """Food101's training photographs, or as many that repeat a few hundred held in memory.

    Returns:
        A `tf.data.Dataset` of single JPEG files (bytes) and labels.
    """
    import numpy as np
    import tensorflow as tf

    if options.data == "real":
        import tensorflow_datasets as tfds

        return food101(options).as_dataset(
            split="train",
            decoders={"image": tfds.decode.SkipDecoding()},
            as_supervised=True,
            shuffle_files=True,
        )
    from harness.twins.photographs import jpeg_photographs

    files = jpeg_photographs()
    labels = np.random.default_rng(options.seed).integers(EXPERIMENT.classes, size=len(files))
    pictures = tf.data.Dataset.from_tensor_slices((files, labels))
    return pictures.repeat().take(EXPERIMENT.samples)


def decode(file, label):
    """A JPEG file as uint8 (224, 224, 3), and its label.

    Resized by area: every pixel of the photograph counts, as with an antialiased bilinear filter,
    which takes TensorFlow several times as long.
    """
    import tensorflow as tf

    image = tf.io.decode_jpeg(file, channels=3)
    image = tf.image.resize(image, [EXPERIMENT.input_size] * 2, method="area")
    return tf.cast(tf.round(image), tf.uint8), label


def make_batches(photographs, batch_size: int):
    """Shuffled batches, decoded by a thread per core."""
    cores = harness.machine.usable_cores()
    decoded = photographs.shuffle(SHUFFLE_BUFFER).map(decode, num_parallel_calls=cores)
    return decoded.batch(batch_size, drop_remainder=True).prefetch(PREFETCHED_BATCHES)


def build_model(options):
    """ResNet50 that takes uint8 images (N, 224, 224, 3), so that they are scaled on the device."""
    import keras

    from harness.models.resnet50 import resnet50

    model = resnet50(224, EXPERIMENT.classes)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss="sparse_categorical_crossentropy",
        jit_compile=options.compile,
    )
    return model


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    from harness.frameworks import tensorflow

    return tensorflow.prepare(options, food101)


def measure(batch_size: int, options) -> dict:
    """Train ResNet50 at one batch size; returns the measured columns of its row."""
    from harness.frameworks import tensorflow
    from harness.frameworks.training import measure_training

    device = tensorflow.start(options)
    photographs = load_data(options)
    with tensorflow.on_all(device):
        model = build_model(options)
    # `tf.data` fills its queue while the first step compiles; that has to drain before rates count.
    dataset = make_batches(photographs, batch_size * device.count)
    return measure_training(
        tensorflow.fit(model, dataset, device), len(photographs), batch_size, options,
        warmup_steps=PREFETCHED_BATCHES + 1, devices=device.count,
    )  # fmt: skip


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
