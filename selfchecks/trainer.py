"""What the NLP protocol costs: ratios of two things measured in one run, interleaved.

A small DistilBERT trained by Trainer with the shared clock, against the same without it.
"""

import argparse
import tempfile
import time

import torch
from datasets import Dataset
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PrinterCallback,
    Trainer,
)

import harness.frameworks.trainer
import pytorch_test_nlp as script
from harness.clock import Clock
from harness.frameworks import pytorch
from selfchecks.pairs import interleaved_ratios

CPU = torch.device("cpu")
OPTIONS = argparse.Namespace(
    data="synthetic", device="cpu", precision="fp32", compile=False, epochs=1, seed=1
)


def make_trainer(model, dataset, batch_size: int, scratch: str, kind=Trainer) -> Trainer:
    """A Trainer of `model` on `dataset` with the script's arguments, silent."""
    arguments = harness.frameworks.trainer.training_arguments(batch_size, OPTIONS, CPU, scratch)
    trainer = kind(model, arguments, data_collator=script.pad, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)
    return trainer


def small_distilbert():
    config = DistilBertConfig(vocab_size=1000, dim=128, hidden_dim=512, n_heads=2, n_layers=2)
    return DistilBertForSequenceClassification(config)


def loop_ratios(pairs: int = 30, batch_size: int = 8, steps: int = 30) -> list[float]:
    """Of interleaved pairs, the bare Trainer's seconds divided by the clocked one's."""
    tokens = torch.randint(1000, (batch_size * steps, 64)).numpy()
    rows = {"input_ids": list(tokens), "label": [0, 1] * (len(tokens) // 2)}
    dataset = Dataset.from_dict(rows).with_format("numpy")
    model = small_distilbert()

    def bare():
        with tempfile.TemporaryDirectory() as scratch:
            make_trainer(model, dataset, batch_size, scratch).train()

    def with_clock():
        clock = Clock(batch_size, len(dataset), 1, pytorch.synchronize(CPU))
        kind = harness.frameworks.trainer.TokenCountingTrainer
        with tempfile.TemporaryDirectory() as scratch:
            trainer = make_trainer(model, dataset, batch_size, scratch, kind=kind)
            trainer.add_callback(harness.frameworks.trainer.ClockCallback(clock, trainer))
            trainer.train()

    return interleaved_ratios(with_clock, bare, pairs)


def loader_rate(batch_size: int, samples: int) -> float:
    """Reviews of the twin per second that Trainer's loader gathers and pads, without a model."""
    dataset = script.load_tokens(OPTIONS, "train").select(range(samples))
    with tempfile.TemporaryDirectory() as scratch:
        loader = make_trainer(small_distilbert(), dataset, batch_size, scratch)
        batches = iter(loader.get_train_dataloader())
    next(batches)
    start = time.perf_counter()
    reviews = sum(len(batch["labels"]) for batch in batches)
    return reviews / (time.perf_counter() - start)
