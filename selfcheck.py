# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "torch", "torchvision", "tensorflow", "llama-cpp-python", "gguf", "filelock", "pandas",
#   "psutil", "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""Can the numbers of this collection be trusted on this machine?

Every check measures something twice in one run, once the collection's way and once the plain way,
and holds the ratio against a target: what the measuring costs, whether the clock tells the truth,
how far a short run's estimate is from a long run's, whether the data keeps up with the device, and
how steady the machine is. The last part measures the ceilings that TFLOP/s can be read against.

    python selfcheck.py --quick
"""

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psutil
from tqdm import tqdm

import utils
import utils_machine
from utils_clock import Clock, Window, rate_of, steady_rate, steady_windows
from utils_process import run_in_fresh_process

BATCH_SIZE = 32
SLICE_SECONDS = 10.0


class Finding(NamedTuple):
    """What a check saw; `passed` is None for a figure that has no target."""

    check: str
    value: float | None
    unit: str
    target: str
    passed: bool | None


def at_least(check: str, value: float, target: float, unit: str = "ratio") -> Finding:
    return Finding(check, value, unit, f"at least {target:g}", bool(value >= target))


def at_most(check: str, value: float, target: float, unit: str) -> Finding:
    return Finding(check, value, unit, f"at most {target:g}", bool(value <= target))


def figure(check: str, value: float | None, unit: str) -> Finding:
    return Finding(check, value, unit, "", None)


# Overhead: the measured loop beside a bare one of the same work


def overhead_pytorch(quick: bool) -> list[Finding]:
    import benchmark_pytorch

    pairs = 6 if quick else 20
    return [at_least("PyTorch loop / bare loop", benchmark_pytorch.loop_ratio(pairs=pairs), 0.98)]


# The clock, and the estimate that a short run gives


def clock(quick: bool) -> list[Finding]:
    train_step, synchronize, read_back = resnet50_step()
    seconds = 20 if quick else 60
    truth = reported_over_true(train_step, synchronize, read_back, seconds)
    return [at_most("clock's rate beside a stopwatch's, off by", 100 * abs(truth - 1), 3, "%")]


def resnet50_step():
    """One training step of ResNet50 on a batch of 32x32 images that lies on the device.

    Returns:
        The step; the protocol's `synchronize`; and a way around it to wait for the device, which
        reads a number back that the last step computed.
    """
    import torch
    from torchvision.models import resnet50

    import utils_pytorch

    options = argparse.Namespace(
        device="auto", seed=1, precision="fp32", compile=False, channels_last=False
    )
    device = utils_pytorch.start(options)
    model = resnet50(num_classes=100).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    _, step = utils_pytorch.make_steps(
        model, torch.nn.CrossEntropyLoss(), optimizer, device, options
    )
    images = torch.randint(256, (BATCH_SIZE, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(100, (BATCH_SIZE,), device=device)
    return (
        lambda: step(images, labels),
        utils_pytorch.synchronize(device),
        lambda: model.fc.bias[0].item(),
    )


def reported_over_true(
    train_step, synchronize, read_back, seconds: float, now=time.perf_counter
) -> float:
    """The rate that the clock reports, divided by that of a stopwatch around the same steps.

    The two take turns, so that drift falls on both.
    """
    reported, true = [], []
    for _ in range(5):
        run = Clock(BATCH_SIZE, BATCH_SIZE * 10**9, 1, synchronize, seconds / 10, now=now)
        run.start()
        while True:
            train_step()
            if run.step(BATCH_SIZE):
                break
        run.stop()
        reported.append(rate_of(run.windows))
        steps = sum(window.steps for window in run.windows)
        read_back()
        start = now()
        for _ in range(steps):
            train_step()
        read_back()
        true.append(steps * BATCH_SIZE / (now() - start))
    return statistics.median(r / t for r, t in zip(reported, true, strict=True))


def estimate(quick: bool) -> list[Finding]:
    train_step, synchronize, _ = resnet50_step()
    seconds = 40 if quick else 180
    run = Clock(BATCH_SIZE, BATCH_SIZE * 10**9, 1, synchronize, seconds)
    run.start()
    while True:
        train_step()
        if run.step(BATCH_SIZE):
            break
    run.stop()
    return judge_slices(run.windows)


def judge_slices(windows: list[Window]) -> list[Finding]:
    """What every slice of `SLICE_SECONDS` would have reported, against the whole run's rate."""
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
    _, *percentiles = statistics.quantiles(errors, n=20, method="inclusive")
    return [
        at_most("error of a 10 s estimate, median", statistics.median(errors), 2, "%"),
        figure("error of a 10 s estimate, 95th percentile", percentiles[-1], "%"),
        at_least(
            "its 95 % interval held the long run's rate", 100 * statistics.mean(held), 90, "%"
        ),
    ]


# Pipelines: what the loaders deliver, against their ceiling and the device's appetite


def pipeline_cifar100(quick: bool) -> list[Finding]:
    import torch

    import pytorch_test_computer_vision_cifar100 as script
    from benchmark_pytorch import loader_rate

    data = script.load_data(argparse.Namespace(data="synthetic"))
    loader = script.make_loader(data, BATCH_SIZE, torch.device("cpu"))
    delivered = statistics.median(loader_rate(loader) for _ in range(2 if quick else 5))
    copied = len(data) / shortest_seconds(data.images.clone)
    train_step, synchronize, _ = resnet50_step()
    eaten = BATCH_SIZE / shortest_seconds(lambda: (train_step(), synchronize()))
    return [
        figure("CIFAR100 loader, share of a plain memory copy", 100 * delivered / copied, "%"),
        at_least("CIFAR100 loader / what the device trains", delivered / eaten, 2),
    ]


def shortest_seconds(work, times: int = 5) -> float:
    """Seconds of the fastest of `times` runs of `work`, after one that warms up."""
    work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# Steadiness: the same work again and again


def steadiness(quick: bool) -> list[Finding]:
    multiply, _ = matrix_product("fp32", 1024)
    blocks = repeat(multiply, blocks=12, block_seconds=1.0 if quick else 5.0)
    return judge_blocks(blocks)


def repeat(work, blocks: int, block_seconds: float) -> list[float]:
    """Repetitions per second of `work` in each of so many blocks of time."""
    work()
    rates = []
    for _ in tqdm(range(blocks), desc="steadiness", leave=False, disable=None):
        count, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < block_seconds:
            work()
            count += 1
        rates.append(count / seconds)
    return rates


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


# Ceilings: what the device can do at best


def ceilings(quick: bool) -> list[Finding]:
    found = []
    for precision in ("fp32", "bf16", "fp16"):
        try:
            tflops = peak_tflops(precision, seconds=0.2 if quick else 1.0)
        except utils.UsageError:
            tflops = None  # this device does not compute in that precision
        found.append(figure(f"matrix product, {precision}", tflops, "TFLOP/s"))
    copy, size = memory_copy()
    found.append(figure("memory bandwidth", 2 * size / shortest_seconds(copy) / 1e9, "GB/s"))
    return found


def peak_tflops(precision: str, seconds: float) -> float:
    """The best rate of matrix products, doubled in size until one takes longer than `seconds`."""
    best, size, took = 0.0, 256, 0.0
    while took < seconds and size <= 16384:
        multiply, operations = matrix_product(precision, size)
        took = shortest_seconds(multiply)
        best = max(best, operations / took / 1e12)
        size *= 2
    return best


def matrix_product(precision: str, size: int):
    """A square matrix product on the device that waits until it is done, and its operations."""
    import torch

    import utils_pytorch

    options = argparse.Namespace(device="auto", seed=1, precision=precision)
    device = utils_pytorch.start(options)
    a, b = torch.randn(2, size, size, device=device).to(utils_pytorch.DTYPES[precision])
    synchronize = utils_pytorch.synchronize(device)

    def multiply():
        torch.mm(a, b)
        synchronize()

    return multiply, 2 * size**3


def memory_copy(size: int = 2**29):
    """A copy of `size` bytes from one place of the device's memory to another."""
    import torch

    import utils_pytorch

    device = utils_pytorch.choose_device("auto")
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    synchronize = utils_pytorch.synchronize(device)
    return lambda: (target.copy_(source), synchronize()), size


# The table


CHECKS = [overhead_pytorch, clock, estimate, pipeline_cifar100, steadiness, ceilings]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter runs, wider uncertainty")
    parser.add_argument("--results_dir", type=Path, default=Path("results"))
    parser.add_argument("--machine_name", type=utils.machine_name)
    return parser.parse_args()


def identify() -> dict:
    """The machine and its device, as every experiment names them."""
    import utils_pytorch

    return utils_pytorch.facts(utils_pytorch.choose_device("auto"))


def run_checks(quick: bool) -> tuple[list[Finding], list[str]]:
    """The findings of all checks, each in a fresh process; and those that could not be made."""
    findings, broken = [], []
    for check in tqdm(CHECKS, desc="checks", unit=" checks", disable=None):
        outcome = run_in_fresh_process(check, quick)
        if outcome["status"] == "ok":
            findings += outcome["value"]
        else:
            broken.append(f"{check.__name__}: {outcome['error']}")
    return findings, broken


def show(findings: list[Finding], broken: list[str]) -> None:
    import pandas as pd

    verdicts = {True: "ok", False: "MISSED", None: ""}
    table = pd.DataFrame(findings).assign(
        value=[f"{f.value:,.3g}" if f.value is not None else "" for f in findings],
        passed=[verdicts[f.passed] for f in findings],
    )
    print(table.rename(columns={"passed": "verdict"}).to_string(index=False))
    for line in broken:
        print(f"could not be checked: {line}")


def main() -> None:
    options = parse_arguments()
    with utils.one_line_errors([], options.results_dir):
        utils.require_writable(options.results_dir)
        outcome = run_in_fresh_process(identify)
        if outcome["status"] != "ok":
            raise utils.UserError(outcome["error"])
        facts = outcome["value"]
        machine = options.machine_name or facts["machine"]
        load, busiest = utils_machine.other_load()
        thermal = utils_machine.thermal_state()
        print(f"machine {machine}, device {facts['device']}, {facts['framework']}")
        print(f"other programs: {load:.0f} % of the processor, most of all {busiest}")
        print(f"power: {facts['power'] or 'unknown'}; heat: {thermal or 'unknown'}", flush=True)
        findings, broken = run_checks(options.quick)
        report = {
            **facts,
            "machine": machine,
            "project_version": utils.PROJECT_VERSION,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": options.quick,
            "other_load_percent": load,
            "memory_available_gb": psutil.virtual_memory().available / 1e9,
            "thermal_state": thermal,
            "findings": [finding._asdict() for finding in findings],
            "not_checked": broken,
        }
        path = options.results_dir / "selfcheck" / f"{machine}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        show(findings, broken)
        print(f"\nReport: {path}")
    sys.exit(bool(broken) or any(finding.passed is False for finding in findings))


if __name__ == "__main__":
    main()
