"""SmallTransformer, and IMDB's real loading code on a small file in the true format."""

import argparse
import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from loopback import serve

import harness.imdb
import tensorflow_test_nlp as script
import utils
from harness.frameworks import tensorflow
from harness.frameworks.training import measure_training
from harness.models.small_transformer import small_transformer

ROOT = Path(__file__).parent.parent
REVIEWS = [[5, 20, 7], list(range(1, 301)), [19_996, 19_997, 30_000], [1]]
TINY = dict(
    maxlen=8, vocab_size=50, embed_dim=8, num_heads=2, ff_dim=16, num_transformer_blocks=2,
    dropout_rate=0.1,
)  # fmt: skip


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.clock.PROBE_SECONDS", 0.1)
    return argparse.Namespace(
        data="auto", data_dir=tmp_path / "data", device="cpu", precision="fp32", compile=False,
        seed=1, thermal_protocol="cold", epochs=1, max_seconds=None,
        **script.EXPERIMENT.model_flags,
    )  # fmt: skip


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a small imdb.npz where the script is told to find it."""
    folder = tmp_path / "served"
    folder.mkdir()
    reviews = np.array(REVIEWS, dtype=object)
    labels = np.array([1, 0, 0, 1])
    np.savez(folder / "imdb.npz", x_train=reviews, y_train=labels, x_test=reviews, y_test=labels)
    data = (folder / "imdb.npz").read_bytes()
    with serve(folder) as running:
        monkeypatch.setattr(harness.imdb, "URL", f"{running.url}/imdb.npz")
        monkeypatch.setattr(harness.imdb, "SHA256", hashlib.sha256(data).hexdigest())
        yield running


def test_download_once_then_reuse(server, options):
    assert script.prepare(options)["data"] == "real"
    assert "GET" in server.requests
    server.requests.clear()
    assert script.prepare(options)["data"] == "real"
    assert server.requests == []


def test_reviews_are_encoded_as_keras_encodes_them(server, options, monkeypatch):
    options.data = script.prepare(options)["data"]
    reviews, labels = script.load_data(options)
    monkeypatch.setattr(
        "keras.src.datasets.imdb.get_file", lambda **_: str(options.data_dir / "imdb.npz")
    )
    (expected, expected_labels), _ = keras.datasets.imdb.load_data(num_words=20_000)
    expected = keras.utils.pad_sequences(expected, 200)
    assert (reviews.shape, reviews.dtype) == ((4, 200), np.int32)
    # Keras also shuffles them.
    found = sorted(zip(reviews.tolist(), labels.tolist(), strict=True))
    assert found == sorted(zip(expected.tolist(), expected_labels.tolist(), strict=True))
    assert reviews.max() == 19_999


def test_broken_checksum_is_an_error_not_a_fallback(server, options, monkeypatch):
    monkeypatch.setattr(harness.imdb, "SHA256", "0" * 64)
    with pytest.raises(utils.UserError, match="imdb.npz is damaged.*delete"):
        script.prepare(options)


def test_unreachable_server(server, options, monkeypatch):
    monkeypatch.setattr(harness.imdb, "URL", "http://127.0.0.1:9/imdb.npz")
    assert script.prepare(options)["data"] == "synthetic"
    options.data = "real"
    with pytest.raises(utils.UserError, match="--data=real"):
        script.prepare(options)


def test_twin_has_the_real_datas_shape_and_vocabulary(options):
    options.data, options.vocab_size = "synthetic", 100
    reviews, labels = script.load_data(options)
    assert (reviews.shape, reviews.dtype) == ((25_000, 200), np.int32)
    assert (reviews.min(), reviews.max()) == (0, 99)
    assert set(labels) == {0, 1}
    # Padded in front, as most of IMDB's reviews are.
    assert 0.5 < np.mean(reviews[:, 0] == 0) < 0.7 and np.all(reviews[:, -1] > 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(dict(embed_dim=100), "--embed_dim=100: not divisible by --num_heads=8"),
     (dict(vocab_size=3), "--vocab_size=3")],
)  # fmt: skip
def test_options_that_do_not_fit_are_bad_usage(options, flags, message):
    with pytest.raises(utils.UsageError, match=message):
        script.prepare(argparse.Namespace(**vars(options) | flags))


def test_model_has_the_parameters_of_its_options(options):
    model = script.build_model(options)
    embeddings = (20_000 + 200) * 128
    attention = 4 * (128 * 128 + 128)
    feed_forward = 2 * (128 * 128 + 128)
    norms = 2 * 2 * 128
    head = 128 * 2 + 2
    assert model.count_params() == embeddings + attention + feed_forward + norms + head


def test_model_is_the_same_after_saving_and_loading(tmp_path):
    model = small_transformer(**TINY)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    tokens = np.random.default_rng(0).integers(50, size=(3, 8))
    assert [layer.get_config() for layer in loaded.layers[1:4]] == [
        layer.get_config() for layer in model.layers[1:4]
    ]
    assert np.array_equal(loaded.predict(tokens, verbose=0), model.predict(tokens, verbose=0))


def test_positions_matter(options):
    model = small_transformer(**TINY)
    there, back = np.arange(8)[None], np.arange(8)[None, ::-1]
    assert not np.allclose(model.predict(there, verbose=0), model.predict(back, verbose=0))


def test_loss_falls_on_learnable_data(options):
    for name, value in TINY.items():
        setattr(options, name, value)
    device = tensorflow.start(options)
    tokens = np.random.default_rng(0).integers(50, size=(256, 8), dtype=np.int32)
    labels = np.any(tokens < 5, axis=1).astype(int)  # whether some word is among the first

    dataset = tensorflow.in_memory_batches(tokens, labels, 16)
    options.epochs = 15
    training = tensorflow.fit(script.build_model(options), dataset, device)
    row = measure_training(training, 256, 16, options)
    # An untrained network's is ln 2, 0.69.
    assert row["train_loss"] < 0.35


def test_script_as_a_user_runs_it(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tensorflow_test_nlp.py", "--data=synthetic", "--max_seconds=1",
         "--batch_sizes=16", "--maxlen=64", f"--results_dir={tmp_path}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = tmp_path.rglob("*_results.csv")
    assert path.parent.name == "results_tensorflow_nlp"
    assert path.name.endswith("_imdb_smalltransformer_200_tensorflow_results.csv")
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["maxlen"], row["dropout_rate"]) == ("ok", "64", "0.1")
    assert float(row["compute_samples_per_second"]) > 0 and float(row["tflops_per_second"]) > 0
    assert row["steps_per_epoch"] == "1562"
