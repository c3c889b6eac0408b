# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "mlx>=0.32; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "mlx[cpu]>=0.32; sys_platform == 'linux'",
#   "numpy", "filelock", "nvidia-ml-py>=12.535", "packaging", "pandas", "psutil", "py-cpuinfo",
#   "scipy", "tqdm",
# ]
# ///
"""How fast does this machine train a small transformer on film reviews (IMDB) with MLX?

Inside the clock: gathering a batch from memory, forward and backward pass, Adam's update, in one
compiled step (--no-compile: without). Outside: imports, download, padding, building the model,
evaluation (there is none).
Model: SmallTransformer of tensorflow_test_nlp.py in mlx.nn, untrained, 2 classes; its options are
part of a row's configuration. Data: 25,000 reviews as token ids, cut or padded to 200.

    python mlx_test_nlp.py --epochs=1 --batch_sizes="32"
"""

import utils
from harness import imdb

EXPERIMENT = utils.Experiment(
    title="MLX, small transformer, IMDB",
    place=110,
    chart="mlx_nlp_imdb",
    description=__doc__,
    backend="mlx",
    task="nlp",
    dataset="imdb",
    model="smalltransformer",
    input_size=200,
    epochs=3,
    compile=True,  # the usual way to train in MLX
    varied=utils.batch_sizes("16, 32, 64, 128"),
    samples=imdb.SAMPLES,
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


def loss_function(model, tokens, labels):
    """Cross entropy of token ids (N, maxlen)."""
    from harness.frameworks import mlx

    return mlx.cross_entropy(model(tokens), labels)


def build_model(options):
    """SmallTransformer of the command line's options."""
    from harness.models.small_transformer_mlx import SmallTransformer

    return SmallTransformer(**{name: getattr(options, name) for name in EXPERIMENT.model_flags})


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    imdb.check(options)
    from harness.frameworks import mlx

    return mlx.prepare(options, imdb.fetch)


def measure(batch_size: int, options) -> dict:
    """Train SmallTransformer at one batch size; returns the measured columns of its row."""
    import mlx.optimizers as optim

    from harness.frameworks import mlx
    from harness.frameworks.training import measure_training

    device = mlx.start(options)
    reviews, labels = imdb.load_data(options)
    batches = mlx.in_memory_batches(reviews, labels, batch_size)
    # The Adam of PyTorch and Keras; in MLX its bias correction is off by default.
    optimizer = optim.Adam(learning_rate=1e-3, bias_correction=True)
    model = build_model(options)
    training = mlx.Training(model, loss_function, optimizer, batches, device, options)
    return measure_training(training, len(labels), batch_size, options)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
