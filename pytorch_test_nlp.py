# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "torch>=2.11", "transformers>=5,<6", "datasets>=4", "accelerate", "evaluate", "scikit-learn",
#   "huggingface_hub", "filelock", "nvidia-ml-py>=12.535", "packaging", "pandas", "psutil",
#   "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""How fast does this machine fine-tune DistilBERT on IMDB with PyTorch and Hugging Face's Trainer?

Inside the clock: gathering and padding a batch of tokens, moving it to the device, forward pass,
backward pass through what is trained, gradient clipping, AdamW's update. Outside: imports,
downloads, tokenizing, building the model, evaluation (--evaluate).
Model: DistilBERT base uncased; its top block and the two layers of its head are trained. Data:
25,000 film reviews of up to 512 tokens, each batch padded to its longest review.

    python pytorch_test_nlp.py --epochs=1 --batch_sizes="32"
"""

from tempfile import TemporaryDirectory

import harness.data
import utils

EXPERIMENT = utils.Experiment(
    title="PyTorch, DistilBERT, IMDB",
    place=30,
    chart="pytorch_nlp_distilbert_imdb",
    description=__doc__,
    backend="pytorch",
    task="nlp",
    dataset="imdb",
    model="distilbert",
    input_size=512,
    epochs=3,
    varied=utils.batch_sizes("16, 32, 64, 128, 256, 512"),
    samples=25_000,
    classes=2,
    quick={"batch_sizes": "4"},
    switches={"evaluate": "test accuracy, after the clock has stopped"},
    extra_columns=("weights", "transformers", "test_accuracy"),
)
DATASET = "stanfordnlp/imdb"
WEIGHTS = "distilbert/distilbert-base-uncased"
WEIGHT_FILES = ["config.json", "tokenizer*.json", "vocab.txt", "model.safetensors"]
LEARNING_RATE = 2e-5


# Data


def fetch(options) -> None:
    """Bring reviews and weights into the data directory, and tokenize once for all batch sizes."""
    for split in ["train", "test"] if options.evaluate else ["train"]:
        real_tokens(options, split)


def real_tokens(options, split: str):
    """A split's token ids and labels; the files that hold them are kept in the data directory.

    Raises:
        DataUnreachable: reviews or tokenizer are neither there nor to be had.
        UserError: the reviews that are there cannot be read, or are not all.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowInvalid
    from transformers import AutoTokenizer

    reviews = harness.data.from_hub(DATASET, "dataset", [f"plain_text/{split}-*"], options.data_dir)
    weights = harness.data.from_hub(WEIGHTS, "model", WEIGHT_FILES, options.data_dir)
    files = sorted(map(str, reviews.glob(f"plain_text/{split}-*.parquet")))
    cache = options.data_dir / "imdb"
    try:
        dataset = Dataset.from_parquet(files, cache_dir=str(cache))
    except (ArrowInvalid, DatasetGenerationError) as error:
        raise harness.data.unreadable(
            DATASET, error, reviews.parent.parent, options.data_dir
        ) from None
    harness.data.require_samples(
        f"{DATASET}, {split}", len(dataset), EXPERIMENT.samples, reviews, options.data_dir
    )
    # Loaded anew for each split: one that was used has another fingerprint, and nothing is reused.
    return dataset.map(
        tokenize,
        fn_kwargs={"tokenizer": AutoTokenizer.from_pretrained(weights)},
        batched=True,
        remove_columns="text",
        desc=f"tokenizing {DATASET}, {split}",
    )


def tokenize(batch, tokenizer):
    return tokenizer(
        batch["text"],
        truncation=True,
        max_length=EXPERIMENT.input_size,
        return_attention_mask=False,
    )


def random_tokens(seed: int):
    """Reviews of random tokens and labels, as many and as long as those of either split of IMDB.

    Lengths are log-normal, with the mean of 300 and the 95th percentile of 705 word pieces that
    Beltagy, Peters and Cohan report for IMDB ("Longformer", arXiv:2004.05150).
    """
    import numpy as np
    from datasets import Dataset

    random = np.random.default_rng(seed)
    sigma = 0.65
    mean_of_log = np.log(300) - sigma**2 / 2
    lengths = random.lognormal(mean_of_log, sigma, EXPERIMENT.samples).astype(int)
    lengths = lengths.clip(3, EXPERIMENT.input_size)
    # DistilBERT's vocabulary has its 29,523 words and pieces after the special tokens.
    reviews = np.split(random.integers(999, 30_522, lengths.sum()), lengths.cumsum()[:-1])
    for review in reviews:
        review[0], review[-1] = 101, 102  # [CLS] and [SEP]
    labels = random.integers(2, size=EXPERIMENT.samples)
    return Dataset.from_dict({"input_ids": reviews, "label": labels})


def load_tokens(options, split: str):
    """Reviews of a split as NumPy arrays: `input_ids` (up to 512,) and `label`."""
    if options.data == "real":
        dataset = real_tokens(options, split)
    else:
        dataset = random_tokens(options.seed + (split == "test"))
    return dataset.with_format("numpy")


def pad(reviews: list[dict]) -> dict:
    """A batch as DataCollatorWithPadding makes it, several times as fast: it goes through lists.

    Returns:
        `input_ids` (N, L), `labels` (N,) and the boolean `attention_mask` (N, 1, 1, L). That shape
        is attention's own; of an (N, L) mask DistilBERT asks each step whether it masks anything
        at all, and the processor waits for the device's answer.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tokens = [torch.from_numpy(review["input_ids"]) for review in reviews]
    input_ids = pad_sequence(tokens, batch_first=True).long()  # DistilBERT's [PAD] is token 0
    lengths = torch.tensor([len(review) for review in tokens])
    mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    labels = torch.tensor([int(review["label"]) for review in reviews])
    return {"input_ids": input_ids, "attention_mask": mask[:, None, None, :], "labels": labels}


# Model


def load_model(options):
    """DistilBERT with two classes; only its top block and the two layers of its head learn.

    Raises:
        UserError: the pretrained weights are damaged.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    if options.data == "real":
        weights = harness.data.from_hub(WEIGHTS, "model", WEIGHT_FILES, options.data_dir)
        try:
            model = DistilBertForSequenceClassification.from_pretrained(
                weights, dtype=torch.float32
            )
        except (SafetensorError, OSError) as error:
            raise harness.data.unreadable(
                WEIGHTS, error, weights.parent.parent, options.data_dir
            ) from None
    else:
        model = DistilBertForSequenceClassification(DistilBertConfig())
    model.requires_grad_(False)
    for part in (model.distilbert.transformer.layer[-1], model.pre_classifier, model.classifier):
        part.requires_grad_(True)
    return model


# Measurement


def prepare(options) -> dict:
    """Settle device, data and weights once per sweep; returns the columns that all rows share."""
    import transformers

    from harness.frameworks import pytorch
    from harness.frameworks import trainer as clocked

    clocked.hide_other_gpus(options)
    device = pytorch.choose_device(options.device)
    if (device.type, options.precision) == ("cpu", "fp16"):
        # Trainer would train in float32 without a word.
        raise utils.UsageError("--precision=fp16: Trainer cannot do it on cpu; use bf16 or fp32")
    transformers.logging.set_verbosity_error()
    facts = pytorch.prepare(options, fetch)
    weights = "pretrained" if facts["data"] == "real" else "random"
    return facts | {"weights": weights, "transformers": transformers.__version__}


def measure(batch_size: int, options) -> dict:
    """Fine-tune DistilBERT at one batch size; returns the measured columns of its row."""
    import transformers

    from harness.frameworks import pytorch
    from harness.frameworks import trainer as clocked
    from harness.frameworks.training import measure_training

    transformers.logging.set_verbosity_error()
    clocked.hide_other_gpus(options)
    device = pytorch.start(options)
    with TemporaryDirectory() as scratch:
        arguments = clocked.training_arguments(
            batch_size, options, device, scratch, learning_rate=LEARNING_RATE, weight_decay=0.01
        )
        trainer = clocked.TokenCountingTrainer(
            load_model(options),
            arguments,
            data_collator=pad,
            train_dataset=load_tokens(options, "train"),
        )
        training = clocked.Training(trainer, device, options)
        row = measure_training(training, len(trainer.train_dataset), batch_size, options)
        if options.evaluate:
            trainer.args.dataloader_drop_last = False  # every review counts
            row["test_accuracy"] = accuracy(trainer.predict(load_tokens(options, "test")))
    return row


def accuracy(prediction) -> float:
    """Share of the reviews whose class was predicted right, by `evaluate`'s metric if it loads."""
    import evaluate

    predictions = prediction.predictions.argmax(axis=-1)
    try:
        metric = evaluate.load("accuracy")
    except OSError:  # evaluate keeps its metrics on the Hub, and a copy in the home folder
        return float((predictions == prediction.label_ids).mean())
    return metric.compute(predictions=predictions, references=prediction.label_ids)["accuracy"]


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
