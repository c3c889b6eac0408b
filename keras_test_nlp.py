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
"""Which backend of Keras trains a small transformer on film reviews (IMDB) fastest on this machine?

The same code runs on TensorFlow, PyTorch and JAX, as `model.fit` does it there: JAX compiles the
step, the others do for --compile.
Inside the clock: gathering a batch from memory, moving it to the device, forward and backward pass,
Adam's update. Outside: imports, download, padding, building the model, evaluation (there is none).
Model: SmallTransformer (small_transformer.py), untrained, 2 classes; its options are part of a
row's configuration. Data: 25,000 reviews as token ids, cut or padded to 200.

    python keras_test_nlp.py --epochs=1 --batch_sizes="32"
"""

import utils
from harness.imdb import SAMPLES, check, fetch, load_data

BACKENDS = ("tensorflow", "torch", "jax")
EXPERIMENT = utils.Experiment(
    title="Keras 3, small transformer, IMDB",
    place=80,
    chart="keras_nlp_imdb",
    description=__doc__,
    backend="keras",
    task="nlp",
    dataset="imdb",
    model="smalltransformer",
    input_size=200,
    epochs=3,
    varied=(
        utils.Varied(
            "keras_backend", "backends", ", ".join(BACKENDS), "{}", "backend",
            choices=BACKENDS, in_label=True,
        ),
        *utils.batch_sizes("16, 32, 64, 128"),
    ),
    samples=SAMPLES,
    classes=2,
    quick={"backends": "jax", "batch_sizes": "32"},
    model_flags={
        "embed_dim": 128,
        "num_heads": 8,
        "ff_dim": 128,
        "num_transformer_blocks": 1,
        "dropout_rate": 0.1,
        "maxlen": 200,
        "vocab_size": 20_000,
    },
)  # fmt: skip


def build_model(options, jit_compile: bool):
    """SmallTransformer of the command line's options."""
    import keras

    from harness.models.small_transformer import small_transformer

    model = small_transformer(**{name: getattr(options, name) for name in EXPERIMENT.model_flags})
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss="sparse_categorical_crossentropy",
        jit_compile=jit_compile,
    )
    return model


def prepare(options) -> dict:
    """Settle devices and data once per sweep; returns the columns that rows share."""
    check(options)
    from harness.frameworks import keras

    return keras.prepare(options, fetch)


def measure(backend: str, batch_size: int, options) -> dict:
    """Train SmallTransformer on one backend at one batch size; returns its row's columns."""
    from harness.frameworks import keras
    from harness.frameworks.training import measure_training

    device = keras.start(backend, options)
    reviews, labels = load_data(options)
    model = build_model(options, keras.compiles(backend, options))
    training = keras.fit_in_memory(model, reviews, labels, device, batch_size)
    return measure_training(training, len(labels), batch_size, options)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
