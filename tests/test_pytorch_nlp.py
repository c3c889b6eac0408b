"""DistilBERT on IMDB: downloads from a loopback Hub, and what training under Trainer does."""

import argparse
import csv
import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

import harness.data
import harness.frameworks.trainer
import pytorch_test_nlp as script
import utils
from harness.clock import Clock
from harness.frameworks import pytorch, training

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "film", "good", "bad", "##ly", "and", "the", "plot"]
TINY = dict(vocab_size=64, dim=32, hidden_dim=64, n_heads=2, n_layers=3)


def reviews(count: int) -> dict:
    """Reviews of 1 to 40 words, of which one tells the class."""
    random = np.random.default_rng(count)
    labels = (np.arange(count) % 2).tolist()
    fill = [" ".join(random.choice(["a", "film", "the", "plot"], n % 40)) for n in range(count)]
    return {
        "text": [f"{('bad', 'good')[y]}ly {f}" for y, f in zip(labels, fill, strict=True)],
        "label": labels,
    }


def parquet(rows: dict) -> bytes:
    buffer = io.BytesIO()
    datasets.Dataset.from_dict(rows).to_parquet(buffer)
    return buffer.getvalue()


def tiny_distilbert(folder: Path) -> dict[str, bytes]:
    """The files of a DistilBERT of few weights, as the Hub has them."""
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(**TINY)
    transformers.DistilBertForMaskedLM(config).save_pretrained(folder)
    vocabulary = {token: number for number, token in enumerate(SPECIAL + WORDS)}
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Tiny layers are slower on several threads, above all beside other programs."""
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def use_hub(monkeypatch, url: str) -> None:
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def imdb(hub, tmp_path, monkeypatch):
    """The loopback Hub with both repositories; this process, too, is told to use it."""
    use_hub(monkeypatch, hub.url)
    monkeypatch.setattr(script, "EXPERIMENT", dataclasses.replace(script.EXPERIMENT, samples=70))
    hub.add("dataset", "stanfordnlp/imdb", {
        "plain_text/train-00000-of-00001.parquet": parquet(reviews(70)),
        "plain_text/test-00000-of-00001.parquet": parquet(reviews(70)),
        "plain_text/unsupervised-00000-of-00001.parquet": b"never asked for",
    })  # fmt: skip
    hub.add("model", "distilbert/distilbert-base-uncased", tiny_distilbert(tmp_path / "tiny"))
    return hub


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.clock.PROBE_SECONDS", 0.1)
    monkeypatch.setattr("harness.clock.WINDOW_SECONDS", 0.02)
    return argparse.Namespace(
        data="auto", data_dir=tmp_path / "data", device="cpu", precision="fp32", compile=False,
        evaluate=False, seed=1, thermal_protocol="cold", epochs=1, max_seconds=None,
        num_devices=1, num_machines=1,
    )  # fmt: skip


def test_script_downloads_trains_and_writes_nothing_elsewhere(imdb, tmp_path):
    cwd, scratch = tmp_path / "cwd", tmp_path / "scratch"
    cwd.mkdir()
    scratch.mkdir()
    small = tmp_path / "small" / Path(script.__file__).name  # the script, of as few reviews
    small.parent.mkdir()
    small.write_text(Path(script.__file__).read_text().replace("samples=25_000", "samples=70"))
    done = subprocess.run(
        [sys.executable, small, "--batch_sizes=16", "--epochs=2", "--evaluate",
         "--data=real", "--device=cpu", "--data_dir=../data", "--results_dir=../results",
         "--machine_name=M"],
        cwd=cwd, env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    path = tmp_path / "results/results_pytorch_nlp/M_imdb_distilbert_512_pytorch_results.csv"
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert (row["status"], done.returncode) == ("ok", 0), done.stderr
    assert (row["data"], row["weights"]) == ("real", "pretrained")
    assert (row["transformers"], row["steps_per_epoch"]) == (transformers.__version__, "4")
    assert 0.4 <= float(row["test_accuracy"]) <= 1
    assert all(float(row[name]) > 0 for name in
               ("samples_per_second", "compute_samples_per_second", "tflops_per_second",
                "peak_memory_gb", "train_loss", "avg_time_per_epoch"))  # fmt: skip
    assert "'loss'" not in done.stdout and "train_runtime" not in done.stdout
    assert list(cwd.iterdir()) == []
    assert [path.suffix for path in scratch.iterdir()] in ([], [".lock"])
    known = {"cwd", "scratch", "tiny", "small", "data", "results", "hf_home"}
    assert {path.name for path in tmp_path.iterdir()} <= known
    assert not any("unsupervised" in request for request in imdb.requests)


def test_downloaded_and_tokenized_once_then_reused_offline(imdb, options):
    assert script.prepare(options)["data"] == "real"
    assert any("/cdn/" in request for request in imdb.requests)
    made = {path: path.stat().st_mtime_ns for path in options.data_dir.rglob("cache-*.arrow")}
    imdb.requests.clear()
    imdb.fault = "500"
    facts = script.prepare(options)
    assert (facts["data"], facts["weights"]) == ("real", "pretrained")
    options.data = "real"
    assert len(script.load_tokens(options, "train")) == 70
    assert script.load_model(options).config.dim == TINY["dim"]
    assert imdb.requests == []
    again = {path: path.stat().st_mtime_ns for path in options.data_dir.rglob("cache-*.arrow")}
    assert len(made) == 1 and again == made


def test_tokens_are_those_of_the_reviews(imdb, options):
    options.data = script.prepare(options)["data"]
    review = script.load_tokens(options, "train")[3]
    words = ["[CLS]", *reviews(70)["text"][3].replace("goodly", "good ##ly").split(), "[SEP]"]
    assert review["input_ids"].tolist() == [(SPECIAL + WORDS).index(word) for word in words]
    assert review["label"] == 1


def test_long_reviews_are_cut_to_512_tokens(imdb, options):
    long = {"text": ["film " * 600] * 70, "label": [0] * 70}
    imdb.add("dataset", "stanfordnlp/imdb", {"plain_text/train-0.parquet": parquet(long)})
    options.data = script.prepare(options)["data"]
    review = script.load_tokens(options, "train")[0]
    assert len(review["input_ids"]) == 512 and review["input_ids"][-1] == SPECIAL.index("[SEP]")


def test_reviews_that_are_not_all_there_are_an_error(imdb, options):
    imdb.add("dataset", "stanfordnlp/imdb", {"plain_text/train-0.parquet": parquet(reviews(69))})
    with pytest.raises(utils.UserError, match="train has 69 samples there instead of 70; delete"):
        script.prepare(options)


@pytest.mark.parametrize("fault", ["500", "cut", "unreachable"])
def test_hub_that_fails(imdb, options, monkeypatch, fault):
    imdb.fault = fault
    if fault == "unreachable":
        use_hub(monkeypatch, "http://127.0.0.1:9")
    facts = script.prepare(options)
    assert (facts["data"], facts["weights"]) == ("synthetic", "random")
    options.data = "real"
    with pytest.raises(utils.UserError, match="--data=real"):
        script.prepare(options)


def test_damaged_weights_are_an_error_whose_remedy_works(imdb, options):
    options.data = script.prepare(options)["data"]
    (weights,) = options.data_dir.rglob("model.safetensors")
    weights.resolve().write_bytes(b"cut short")
    with pytest.raises(utils.UserError, match="--data_dir=.* try again") as error:
        script.load_model(options)
    shutil.rmtree(re.search("delete (.+) and try again", str(error.value))[1])
    assert script.load_model(options).config.dim == TINY["dim"]


def test_damaged_reviews_are_an_error_whose_remedy_works(imdb, options):
    patterns = ["plain_text/train-*"]
    folder = harness.data.from_hub("stanfordnlp/imdb", "dataset", patterns, options.data_dir)
    (file,) = folder.rglob("*.parquet")
    file.resolve().write_bytes(b"PAR1" * 9)
    with pytest.raises(utils.UserError, match="--data_dir.*imdb cannot be read") as caught:
        script.prepare(options)
    shutil.rmtree(re.search("delete (.+) and", str(caught.value))[1])
    assert script.prepare(options)["data"] == "real"


def test_twin_is_as_long_as_imdb(options):
    options.data = "synthetic"
    dataset = script.load_tokens(options, "train")
    assert len(dataset) == 25_000 and len(script.load_tokens(options, "test")) == 25_000
    lengths = np.array([len(ids) for ids in dataset.with_format(None)["input_ids"]])
    assert lengths.max() == 512
    # Of a log-normal of mean 300 and 95th percentile 705, 12.6 % lie beyond 512; cut there, the
    # mean is 271.
    assert lengths.mean() == pytest.approx(271, rel=0.01)
    assert (lengths == 512).mean() == pytest.approx(0.126, abs=0.007)
    first = dataset[0]["input_ids"]
    assert (first[0], first[-1]) == (101, 102)
    assert first.max() < transformers.DistilBertConfig().vocab_size
    assert 0.48 < dataset["label"][:].mean() < 0.52


def test_batches_are_those_of_the_librarys_collator(tmp_path):
    tiny_distilbert(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = [list(range(5, 5 + length)) for length in (3, 8, 1)]
    rows = datasets.Dataset.from_dict({"input_ids": ids, "label": [1, 0, 1]})
    ours = script.pad(list(rows.with_format("numpy")))
    library = transformers.DataCollatorWithPadding(tokenizer)(list(rows))
    assert ours["attention_mask"].shape == (3, 1, 1, 8)
    ours["attention_mask"] = ours["attention_mask"][:, 0, 0].long()
    assert ours.keys() == library.keys()
    for name in ours:
        assert torch.equal(ours[name], library[name])
        assert ours[name].dtype == library[name].dtype


def test_mask_of_the_batch_has_the_librarys_effect():
    model = tiny_model().eval()
    batch = script.pad([{"input_ids": np.arange(5, 5 + n), "label": 0} for n in (3, 8)])
    usual = {**batch, "attention_mask": batch["attention_mask"][:, 0, 0].long()}
    assert torch.allclose(model(**batch).logits, model(**usual).logits)
    batch["attention_mask"] = None
    assert not torch.allclose(model(**batch).logits, model(**usual).logits)


def learnable(count: int) -> datasets.Dataset:
    """Token 10 or 11 tells the class."""
    rows = [[5, 10 + number % 2] * (1 + number % 5) for number in range(count)]
    columns = {"input_ids": rows, "label": [number % 2 for number in range(count)]}
    return datasets.Dataset.from_dict(columns).with_format("numpy")


def tiny_model():
    torch.manual_seed(0)
    return transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**TINY))


@pytest.fixture
def measure(imdb, options, monkeypatch):
    """The script's `measure` on the tiny model and reviews, at a rate at which they are learnt."""
    options.data = script.prepare(options)["data"]
    load_model = script.load_model

    def load_and_keep(options):
        measure.model = load_model(options)
        measure.before = {name: v.clone() for name, v in measure.model.state_dict().items()}
        return measure.model

    monkeypatch.setattr(script, "load_model", load_and_keep)
    monkeypatch.setattr(script, "LEARNING_RATE", 1e-2)
    no_metric = types.SimpleNamespace(load=Mock(side_effect=FileNotFoundError))
    monkeypatch.setitem(sys.modules, "evaluate", no_metric)

    def measure(batch_size, **changed):
        for name, value in changed.items():
            setattr(options, name, value)
        return script.measure(batch_size, options)

    return measure


def test_only_top_block_and_head_learn(measure):
    measure(16)
    after = measure.model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], measure.before[name])}
    top = ("distilbert.transformer.layer.2.", "pre_classifier.", "classifier.")
    learns = {name for name in after if name.startswith(top)}
    # The keys' bias has no effect on a softmax, and so no gradient but for rounding.
    bias = "distilbert.transformer.layer.2.attention.k_lin.bias"
    assert changed | {bias} == learns


def test_loss_falls_and_accuracy_rises(measure):
    first = measure(16)
    later = measure(16, epochs=10, evaluate=True)
    assert "test_accuracy" not in first
    assert later["train_loss"] < first["train_loss"] / 2
    assert later["test_accuracy"] > 0.9


def test_batch_larger_than_the_data_is_an_error_that_says_so(measure):
    with pytest.raises(ValueError, match="batch size 71 is larger than the 70"):
        measure(71)


def test_probe_teaches_nothing(options, tmp_path):
    trainer = tiny_trainer(options, tmp_path, 16)
    trainer.train()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1.0
    before = [value.clone() for value in trainer.model.parameters()]
    harness.frameworks.trainer.make_train_step(
        trainer, harness.frameworks.trainer.probe_batches(trainer)
    )()
    for old, new in zip(before, trainer.model.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_max_seconds_ends_the_run(measure, precision):
    row = measure(16, epochs=1000, max_seconds=0.3, precision=precision)
    assert row["extrapolated"] and row["samples_per_second"] > 0
    assert row["avg_time_per_epoch"] == pytest.approx(70 / row["samples_per_second"], rel=0.1)


def tiny_trainer(options, tmp_path, batch_size, samples=70):
    arguments = harness.frameworks.trainer.training_arguments(
        batch_size, options, CPU, str(tmp_path / "out")
    )
    return harness.frameworks.trainer.TokenCountingTrainer(
        tiny_model(), arguments, data_collator=script.pad, train_dataset=learnable(samples)
    )


def run_with_clock(options, tmp_path, **clock_arguments) -> Clock:
    """Two epochs of 70 reviews in batches of 16: 4 full ones; the other 6 are left out."""
    options.epochs = 2
    trainer = tiny_trainer(options, tmp_path, 16)
    clock = Clock(16, 70, 2, **clock_arguments)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(harness.frameworks.trainer.ClockCallback(clock, trainer))
    trainer.train()
    return clock


def test_smaller_last_batch_is_left_out_and_its_time_is_counted(options, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.clock.WINDOW_SECONDS", 0)
    ticks = iter(range(10_000))
    tick = lambda: float(next(ticks))  # noqa: E731
    clock = run_with_clock(options, tmp_path, synchronize=lambda: None, now=tick)
    assert (clock.steps, clock.samples) == (8, 128)
    assert [window.samples for window in clock.windows] == [16, 16, 16, 16]
    row = clock.measurement()
    # 16 samples in 2 ticks.
    assert (row["samples_per_second"], row["extrapolated"], row["steps_per_epoch"]) == (8, False, 4)
    assert row["avg_time_per_epoch"] == clock.total_seconds / 128 * 70


def test_longer_texts_are_more_work(monkeypatch):
    """The probe and the counted operations are of other texts than the run's: tokens convert."""
    monkeypatch.setattr(training, "probe_device", lambda *arguments: 1000.0)  # tokens/s

    class Texts:
        train_step, device = None, types.SimpleNamespace(type="mps")

        def run(self, clock):
            clock.start()
            for _ in range(10):
                clock.step(4, work=800)
            clock.stop()

        def flops_per_work(self):
            return 2 * 10**3 / 100

        def peak_memory_gb(self):
            return None

    row = training.row_of(Texts(), Clock(4, 40, 1, lambda: None))
    assert row["compute_samples_per_second"] == 1000 / 200
    flops_per_text = 2 * 10**3 / 100 * 200
    assert row["tflops_per_second"] == pytest.approx(
        flops_per_text * row["samples_per_second"] / 1e12
    )


def test_padded_tokens_are_counted(options, tmp_path):
    trainer = tiny_trainer(options, tmp_path, 16)
    longest = max(len(review["input_ids"]) for review in trainer.train_dataset)
    trainer.train()
    assert 16 <= trainer.tokens_of_step <= 16 * longest
    lengths = {
        batch["input_ids"].numel() for batch in harness.frameworks.trainer.probe_batches(trainer)
    }
    step = harness.frameworks.trainer.make_train_step(
        trainer, harness.frameworks.trainer.probe_batches(trainer)
    )
    assert step() in lengths


class CountReads(TorchDispatchMode):
    """Counts how often a tensor's value is read by the host, where a device would be waited for."""

    reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += "_local_scalar_dense" in str(function)
        return function(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(options, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.clock.WINDOW_SECONDS", 1e9)
    waits = []
    with CountReads() as counter:
        run_with_clock(options, tmp_path, synchronize=lambda: waits.append(1))
    # At the start, after the first step, after the warm-up, at the stop and for its last window.
    assert len(waits) <= 5
    # Trainer reads the loss and the gradient's norm once per epoch, and the loss at the end.
    assert counter.reads < 10


def test_flops_are_those_of_the_model():
    # Without dropout the CPU, too, has a fused kernel for attention.
    model = tiny_model().eval()
    model.requires_grad_(False)
    for part in (model.distilbert.transformer.layer[-1], model.pre_classifier, model.classifier):
        part.requires_grad_(True)
    batch = script.pad([{"input_ids": np.arange(5, 25), "label": 0}] * 4)
    counted = pytorch.count_flops(
        lambda: harness.frameworks.trainer.backward_of_first_samples(model, [batch])
    )
    tokens, dim, hidden = 20, TINY["dim"], TINY["hidden_dim"]
    weights = 2 * tokens * (4 * dim * dim + 2 * dim * hidden)
    attention = 2 * 2 * tokens * tokens * dim
    head = 2 * (dim * dim + 2 * dim)
    # Three blocks forward; backward twice the forward work, but no gradient of the top block's
    # input, which its queries, keys and values would be multiplied for.
    inputs = 2 * tokens * 3 * dim * dim
    assert counted == 3 * (weights + attention) + head + 2 * (weights + attention + head) - inputs
    assert model.config._attn_implementation == "sdpa"


def test_fp16_on_the_cpu_is_refused(options):
    options.precision, options.data = "fp16", "synthetic"
    with pytest.raises(utils.UsageError, match="--precision=fp16.*cpu"):
        script.prepare(options)


@pytest.mark.parametrize(
    ("device", "visible", "left", "renamed"),
    [("auto", None, "0", "auto"), ("cuda", "", "", "cuda"), ("cuda:1", None, "1", "cuda"),
     ("cuda:1", "4,GPU-7", "GPU-7", "cuda"), ("cpu", "4,5", "4,5", "cpu"),
     ("cuda:1", "4", "", "cuda")],
)  # fmt: skip
def test_one_cuda_device_is_left(options, monkeypatch, device, visible, left, renamed):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    options.device = device
    harness.frameworks.trainer.hide_other_gpus(options)
    assert (os.environ["CUDA_VISIBLE_DEVICES"], options.device) == (left, renamed)


def test_twin_trains_the_real_architecture(options, monkeypatch):
    short = dataclasses.replace(script.EXPERIMENT, input_size=16)
    monkeypatch.setattr(script, "EXPERIMENT", short)
    options.data, options.max_seconds = "synthetic", 0.1
    facts = script.prepare(options)
    row = script.measure(2, options)
    assert (facts["weights"], row["extrapolated"]) == ("random", True)
    assert row["steps_per_epoch"] == 12_500


def test_another_precision_than_the_rows_is_an_error(options, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = tiny_trainer(options, tmp_path, 16)
    with pytest.raises(RuntimeError, match="--precision=fp32: Trainer would compute in bf16"):
        harness.frameworks.trainer.Training(trainer, CPU, options)
