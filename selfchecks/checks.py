"""What selfcheck measures: each check is a function of `quick` that returns its findings."""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from harness import fits
from harness.clock import Clock
from harness.windows import Window, rate_of, steady_rate, steady_windows
from selfchecks.ceilings import ceilings
from selfchecks.findings import (
    Finding,
    at_least,
    at_most,
    figure,
    median_at_least,
    median_off_by,
)
from selfchecks.pairs import shortest_seconds

BATCH_SIZE = 32
SLICE_SECONDS = 10.0
BLOCKS = 12  # of a long run, whose spread is the machine's noise


# Overhead: the measured loop beside a bare one of the same work


def overhead_pytorch(quick: bool) -> list[Finding]:
    import selfchecks.pytorch

    ratios = selfchecks.pytorch.loop_ratios(pairs=pairs_of(quick))
    return [median_at_least("PyTorch loop / bare loop", ratios, 0.98)]


def overhead_trainer(quick: bool) -> list[Finding]:
    import selfchecks.trainer

    ratios = selfchecks.trainer.loop_ratios(pairs=pairs_of(quick))
    return [median_at_least("Transformers' Trainer, with the clock / without", ratios, 0.98)]


def overhead_keras(quick: bool) -> list[Finding]:
    import selfchecks.keras

    return [
        median_at_least(f"Keras on {backend}, loop / plain model.fit", ratios, 0.98)
        for backend, ratios in selfchecks.keras.ratios_by_backend(pairs_of(quick))
    ]


def overhead_llama2(quick: bool) -> list[Finding]:
    import selfchecks.llama

    pairs = pairs_of(quick)
    loop, shuffled = selfchecks.llama.loop_ratios(pairs), selfchecks.llama.shuffle_ratios(pairs)
    return [
        median_at_least("LLM generation / bare llama_cpp loop", loop, 0.98),
        median_off_by("LLM, shuffled weights / as they were, off by", shuffled, 5),
    ]


def overhead_mlx(quick: bool) -> list[Finding]:
    import selfchecks.mlx

    pairs = pairs_of(quick)
    return [
        median_at_least("MLX loop / bare loop", selfchecks.mlx.loop_ratios(pairs=pairs), 0.98),
        median_at_least(
            "MLX generation / mlx_lm.benchmark's", selfchecks.mlx.generation_ratios(pairs), 0.98
        ),
    ]


def overhead_tabular(quick: bool) -> list[Finding]:
    import selfchecks.tabular

    pairs, threads = pairs_of(quick), fits.use_threads("all")
    boosted, scores = selfchecks.tabular.xgboost_ratios(100_000, pairs, threads)
    histograms = selfchecks.tabular.histogram_ratios(100_000, pairs, threads)
    return [
        median_at_least("XGBoost fit / bare fit", boosted, 0.98),
        at_most("its AUC, apart from the bare fit's", abs(scores[0] - scores[1]), 0.002, "AUC"),
        median_at_least("HistGradientBoosting fit / bare fit", histograms, 0.98),
    ]


def overhead_onnx(quick: bool) -> list[Finding]:
    import selfchecks.onnx

    with tempfile.TemporaryDirectory() as folder:
        ratios = selfchecks.onnx.timing_ratios(Path(folder), pairs_of(quick))
    return [median_at_least("ONNX inference / bare loop", ratios, 0.98)]


def pairs_of(quick: bool) -> int:
    return 8 if quick else 20


# The clock; the estimate that a short run gives; and how steady a long one is


def clock(quick: bool) -> list[Finding]:
    train_step, synchronize, read_back = resnet50_step()
    seconds = 20 if quick else 30
    return [judge_clock(reported_over_true(train_step, synchronize, read_back, seconds))]


def judge_clock(ratios: list[float]) -> Finding:
    return median_off_by("clock's rate beside a stopwatch's, off by", ratios, 3)


def resnet50_step(batch_size: int = BATCH_SIZE, image_size: int = 32):
    """One training step of ResNet50 on a batch of images that lies on the device.

    Returns:
        The step; the protocol's `synchronize`; and a way around it to wait for the device, which
        reads a number back that the last step computed.
    """
    import torch
    from torchvision.models import resnet50

    from harness.frameworks import pytorch

    options = argparse.Namespace(device="auto", seed=1, precision="fp32", compile=False)
    device = pytorch.start(options)
    model = resnet50(num_classes=100).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def loss_function(model, images, labels):
        return torch.nn.functional.cross_entropy(model(images.float() / 127.5 - 1), labels)

    training = pytorch.Training(model, None, loss_function, optimizer, device, options)
    shape = (batch_size, 3, image_size, image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(100, (batch_size,), device=device)
    return (
        lambda: training.step((images, labels)),
        training.synchronize,
        lambda: model.fc.bias[0].item(),
    )


def reported_over_true(
    train_step, synchronize, read_back, seconds: float, now=time.perf_counter
) -> list[float]:
    """The rate that the clock reports, divided by that of a stopwatch around as many steps.

    The two take six turns of `seconds` in all, so that drift falls on both.
    """
    ratios = []
    for _ in range(6):
        run = Clock(BATCH_SIZE, BATCH_SIZE * 10**9, 1, synchronize, seconds / 12, now=now)
        run.start()
        while True:
            train_step()
            if run.step(BATCH_SIZE):
                break
        run.stop()
        steps = sum(window.steps for window in run.windows)
        read_back()
        start = now()
        for _ in range(steps):
            train_step()
        read_back()
        true_rate = steps * BATCH_SIZE / (now() - start)
        ratios.append(rate_of(run.windows) / true_rate)
    return ratios


def long_run(quick: bool) -> list[Finding]:
    """The same training step again and again: what a part of it would have said, and its spread."""
    train_step, synchronize, _ = resnet50_step()
    run = Clock(BATCH_SIZE, BATCH_SIZE * 10**9, 1, synchronize, max_seconds=40 if quick else 100)
    run.start()
    while True:
        train_step()
        if run.step(BATCH_SIZE):
            break
    run.stop()
    return judge_slices(run.windows) + judge_blocks(block_rates(run.windows))


def judge_slices(windows: list[Window]) -> list[Finding]:
    """What every slice of `SLICE_SECONDS` would have reported, against the whole run's rate."""
    from scipy.stats import binomtest

    windows = steady_windows(windows)
    whole = rate_of(windows)
    errors, held = [], []
    for first in range(len(windows)):
        length, cut = 0.0, first
        while cut < len(windows) and length < SLICE_SECONDS:
            length += windows[cut].seconds
            cut += 1
        if length < SLICE_SECONDS:
            break
        rate, half_width = steady_rate(windows[first:cut])
        errors.append(100 * abs(rate / whole - 1))
        held.append(bool(abs(rate - whole) <= half_width))
    *_, percentile = statistics.quantiles(errors, n=20, method="inclusive")
    # Slices overlap: the run is no better evidence than as many as lie side by side in it.
    independent = round(sum(window.seconds for window in windows) / SLICE_SECONDS)
    hits = round(statistics.mean(held) * independent)
    chance = binomtest(hits, independent).proportion_ci(method="wilson")
    return [
        at_most("error of a 10 s estimate, median", statistics.median(errors), 2, "%"),
        figure("error of a 10 s estimate, 95th percentile", percentile, "%"),
        at_least(
            "its 95 % interval held the long run's rate",
            100 * statistics.mean(held),
            90,
            "%",
            interval=(100 * float(chance.low), 100 * float(chance.high)),
        ),
    ]


def block_rates(windows: list[Window]) -> list[float]:
    """Samples per second in each of `BLOCKS` blocks of windows, about equal in number."""
    edges = [i * len(windows) // BLOCKS for i in range(BLOCKS + 1)]
    return [rate_of(windows[first:end]) for first, end in itertools.pairwise(edges)]


def judge_blocks(rates: list[float]) -> list[Finding]:
    """Spread and drift, and the smallest difference between two runs that means something."""
    mean = statistics.mean(rates)
    third = len(rates) // 3
    drift = statistics.mean(rates[-third:]) / statistics.mean(rates[:third]) - 1
    spread = statistics.stdev(rates) / mean
    # Two runs differ by chance by less than 1.96 standard deviations of a difference.
    noise = 1.96 * 2**0.5 * spread
    return [
        figure("same work, drift from first to last third", 100 * drift, "%"),
        at_most("differences below this mean nothing", 100 * noise, 5, "%"),
    ]


# Pipelines: what the loaders deliver, against their ceiling and the device's appetite


def pipeline_cifar100(quick: bool) -> list[Finding]:
    import torch

    import pytorch_test_computer_vision_cifar100 as script
    from selfchecks.pytorch import loader_rate

    data = script.load_data(argparse.Namespace(data="synthetic", seed=1))
    loader = script.make_loader(data, BATCH_SIZE, torch.device("cpu"))
    delivered = statistics.median(loader_rate(loader) for _ in range(2 if quick else 5))
    copied = len(data) / shortest_seconds(data.images.clone)
    eaten = appetite(resnet50_step)
    return [
        figure("CIFAR100 loader, share of a plain memory copy", 100 * delivered / copied, "%"),
        at_least("CIFAR100 loader / what the device trains", delivered / eaten, 2),
    ]


def pipeline_food101(quick: bool) -> list[Finding]:
    import selfchecks.food101
    from selfchecks.pairs import timed

    pictures = 512 if quick else 2048
    rows = selfchecks.food101.synthetic_rows(pictures)
    decoding = selfchecks.food101.decoding_ratios()
    loader = selfchecks.food101.our_loader(rows)
    shares = selfchecks.food101.pipeline_shares(rows, loader, pairs=6)
    delivered = pictures / timed(lambda: selfchecks.food101.consume(loader))
    eaten = appetite(lambda batch_size: resnet50_step(batch_size, image_size=224))
    return [
        median_at_least("Food101 loader / (JPEG decoding x cores)", shares, 0.85),
        at_least("Food101 loader / what the device trains", delivered / eaten, 1),
        median_off_by("decoding, synthetic photographs / real ones, off by", decoding, 10),
    ]


def pipeline_imdb(quick: bool) -> list[Finding]:
    import pytorch_test_nlp as script
    import selfchecks.trainer

    delivered = selfchecks.trainer.loader_rate(BATCH_SIZE, samples=2048 if quick else 8192)
    reviews = script.load_tokens(selfchecks.trainer.OPTIONS, "train")
    batch = script.pad([reviews[i] for i in range(BATCH_SIZE)])
    copied = BATCH_SIZE / shortest_seconds(batch["input_ids"].clone)
    eaten = appetite(lambda batch_size: distilbert_step(reviews, batch_size))
    return [
        figure("IMDB loader, share of a plain memory copy", 100 * delivered / copied, "%"),
        at_least("IMDB loader / what the device trains", delivered / eaten, 2),
    ]


def distilbert_step(reviews, batch_size: int):
    """Forward and backward pass of DistilBERT on a batch, and the protocol's `synchronize`."""
    import pytorch_test_nlp as script
    import selfchecks.trainer
    from harness.frameworks import pytorch

    device = pytorch.choose_device("auto")
    model = script.load_model(selfchecks.trainer.OPTIONS).to(device)
    batch = script.pad([reviews[i] for i in range(batch_size)])
    batch = {name: part.to(device) for name, part in batch.items()}
    return lambda: model(**batch).loss.backward(), pytorch.synchronize(device)


def appetite(make_step) -> float:
    """Samples per second that the device trains, at the best of a few batch sizes.

    They are doubled from 8 to 64, until a step takes longer than a second.

    Args:
        make_step: makes a training step of a batch size and a `synchronize`.
    """
    best, batch_size, took = 0.0, 8, 0.0
    while took < 1 and batch_size <= 64:
        train_step, synchronize, *_ = make_step(batch_size)
        took = step_seconds(train_step, synchronize)
        best = max(best, batch_size / took)
        batch_size *= 2
    return best


def step_seconds(train_step, synchronize) -> float:
    """Seconds of the fastest of a few steps, each waited for."""
    return shortest_seconds(lambda: (train_step(), synchronize()))


CHECKS = [
    overhead_pytorch,
    overhead_trainer,
    overhead_keras,
    overhead_llama2,
    overhead_mlx,
    overhead_tabular,
    overhead_onnx,
    clock,
    long_run,
    pipeline_cifar100,
    pipeline_food101,
    pipeline_imdb,
    ceilings,
]
