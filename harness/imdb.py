"""IMDB's film reviews as token ids of one length, for the small transformer.

25,000 of them for training, or as many random ones whose lengths are spread as theirs are.
"""

from pathlib import Path

import harness.data
from harness.process import UsageError

SAMPLES = 25_000
# As keras.datasets.imdb has them, and its meaning of the first ids; 0 is padding.
URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/imdb.npz"
SHA256 = "69664113be75683a8fe16e3ed0ab59fda8886cb3cd7ada244f7d9544e4676b9f"
START, OUT_OF_VOCABULARY, FIRST_WORD = 1, 2, 3


def check(options) -> None:
    """Raises UsageError where the model's options do not fit together."""
    if options.embed_dim % options.num_heads:
        raise UsageError(
            f"--embed_dim={options.embed_dim}: not divisible by --num_heads={options.num_heads}"
        )
    if options.vocab_size <= FIRST_WORD:
        raise UsageError(f"--vocab_size={options.vocab_size}: at least {FIRST_WORD + 1}")


def fetch(options) -> Path:
    """Path of the reviews, brought into the data directory and checked."""
    return harness.data.download(URL, SHA256, options.data_dir)


def load_data(options):
    """The training reviews, or random ones of the same number, shape and vocabulary.

    Returns:
        int32 token ids (N, maxlen), cut and padded in front, and labels (N,).
    """
    import numpy as np

    if options.data == "real":
        # A pickle may run code: this one's check sum is that of the published file.
        with np.load(fetch(options), allow_pickle=True) as file:
            reviews, labels = file["x_train"], file["y_train"]
        reviews = [encode(review, options.vocab_size) for review in reviews]
    else:
        random = np.random.default_rng(options.seed)
        # Half of IMDB's reviews are longer than 178 words, a few have more than a thousand.
        lengths = random.lognormal(np.log(178), 0.6, SAMPLES).astype(int)
        reviews = [random.integers(FIRST_WORD, options.vocab_size, length) for length in lengths]
        labels = random.integers(2, size=SAMPLES)
    padded = np.zeros((len(reviews), options.maxlen), np.int32)
    for row, review in zip(padded, reviews, strict=True):
        end = review[-options.maxlen :]
        row[options.maxlen - len(end) :] = end
    return padded, labels


def encode(review: list[int], vocab_size: int) -> list[int]:
    """Token ids of a review whose words are numbered by how common they are."""
    words = (word + FIRST_WORD for word in review)
    return [START, *(word if word < vocab_size else OUT_OF_VOCABULARY for word in words)]
