# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "tensorflow==2.18.1; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow-metal==1.2.0; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "tensorflow>=2.21,<2.22; sys_platform == 'linux'",
#   "keras>=3.12", "numpy", "filelock", "pandas", "psutil", "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""How fast does this machine train a small transformer on film reviews (IMDB) with TensorFlow?

Inside the clock: gathering a batch from memory, moving it to the device, forward and backward pass,
Adam's update. Outside: imports, download, padding, building the model, evaluation (there is none).
Model: SmallTransformer (small_transformer.py), untrained, 2 classes; its options are part of a
row's configuration. Data: 25,000 reviews as token ids, cut or padded to 200.

    python tensorflow_test_nlp.py --epochs=1 --batch_sizes="32"
"""

import harness.data
import utils

EXPERIMENT = utils.Experiment(
    title="TensorFlow, small transformer, IMDB",
    chart="tensorflow_nlp_imdb",
    description=__doc__,
    backend="tensorflow",
    task="nlp",
    dataset="imdb",
    model="smalltransformer",
    input_size=200,
    epochs=3,
    varied=utils.batch_sizes("16, 32, 64, 128"),
    samples=25_000,
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
# As keras.datasets.imdb has them, and its meaning of the first ids; 0 is padding.
URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/imdb.npz"
SHA256 = "69664113be75683a8fe16e3ed0ab59fda8886cb3cd7ada244f7d9544e4676b9f"
START, OUT_OF_VOCABULARY, FIRST_WORD = 1, 2, 3


def check(options) -> None:
    """Raises UsageError where the model's options do not fit together."""
    if options.embed_dim % options.num_heads:
        raise utils.UsageError(
            f"--embed_dim={options.embed_dim}: not divisible by --num_heads={options.num_heads}"
        )
    if options.vocab_size <= FIRST_WORD:
        raise utils.UsageError(f"--vocab_size={options.vocab_size}: at least {FIRST_WORD + 1}")


def fetch(options):
    """Path of the reviews, brought into the data directory and checked."""

    return harness.data.download(URL, SHA256, options.data_dir)


def load_data(options):
    """IMDB's training reviews, or random ones of the same number, shape and vocabulary.

    Returns:
        int32 token ids (N, maxlen), padded in front, and labels (N,).
    """
    import keras
    import numpy as np

    if options.data == "real":
        # A pickle may run code: this one's check sum is that of the published file.
        with np.load(fetch(options), allow_pickle=True) as file:
            reviews, labels = file["x_train"], file["y_train"]
        reviews = [encode(review, options.vocab_size) for review in reviews]
    else:
        random = np.random.default_rng(options.seed)
        # Half of IMDB's reviews are longer than 178 words, a few have more than a thousand.
        lengths = random.lognormal(np.log(178), 0.6, EXPERIMENT.samples).astype(int)
        reviews = [random.integers(FIRST_WORD, options.vocab_size, length) for length in lengths]
        labels = random.integers(2, size=EXPERIMENT.samples)
    return keras.utils.pad_sequences(reviews, options.maxlen), labels


def encode(review: list[int], vocab_size: int) -> list[int]:
    """Token ids of a review whose words are numbered by how common they are."""
    words = (word + FIRST_WORD for word in review)
    return [START, *(word if word < vocab_size else OUT_OF_VOCABULARY for word in words)]


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

    device = tensorflow.start(options)
    reviews, labels = load_data(options)
    dataset = tensorflow.in_memory_batches(reviews, labels, batch_size)
    return tensorflow.measure_training(
        build_model(options), dataset, len(labels), device, batch_size, options
    )


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
