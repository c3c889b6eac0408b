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
"""How fast does this machine train a small transformer on film reviews (IMDB) with TensorFlow?

Inside the clock: gathering a batch from memory, moving it to the device, forward and backward pass,
Adam's update. Outside: imports, download, padding, building the model, evaluation (there is none).
Model: SmallTransformer (small_transformer.py), untrained, 2 classes; its options are part of a
row's configuration. Data: 25,000 reviews as token ids, cut or padded to 200.

    python tensorflow_test_nlp.py --epochs=1 --batch_sizes="32"
"""

import utils
from harness.imdb import SAMPLES, check, fetch, load_data

EXPERIMENT = utils.Experiment(
    title="TensorFlow, small transformer, IMDB",
    place=60,
    chart="tensorflow_nlp_imdb",
    description=__doc__,
    backend="tensorflow",
    task="nlp",
    dataset="imdb",
    model="smalltransformer",
    input_size=200,
    epochs=3,
    varied=utils.batch_sizes("16, 32, 64, 128"),
    samples=SAMPLES,
    classes=2,
    quick={"batch_sizes": "32"},
    model_flags={
        "embed_dim": 128,
        "num_heads": 8,
        "ff_dim": 128,
        "num_transformer_blocks": 1,
        "dropout_rate": 0.1,
        "maxlen": 200,
        "vocab_size": 20_000,
    },
)


def build_model(options):
    """SmallTransformer of the command line's options."""
    import keras

    from harness.models.small_transformer import small_transformer

    model = small_transformer(**{name: getattr(options, name) for name in EXPERIMENT.model_flags})
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss="sparse_categorical_crossentropy",
        jit_compile=options.compile,
    )
    return model


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    check(options)
    from harness.frameworks import tensorflow

    return tensorflow.prepare(options, fetch)


def measure(batch_size: int, options) -> dict:
    """Train SmallTransformer at one batch size; returns the measured columns of its row."""
    from harness.frameworks import tensorflow
    from harness.frameworks.training import measure_training

    device = tensorflow.start(options)
    reviews, labels = load_data(options)
    dataset = tensorflow.in_memory_batches(reviews, labels, batch_size * device.count)
    with tensorflow.on_all(device):
        model = build_model(options)
    training = tensorflow.fit(model, dataset, device)
    return measure_training(training, len(labels), batch_size, options, devices=device.count)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
