"""What every script shares: command line, data choice, sweep, results. Imports no ML framework.

A sweep measures every batch size in a fresh process, so that memory of one never leaks into the
next and a crash costs one row. A row is saved the moment its batch size ends.
"""

import argparse
import csv
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock
from tqdm import tqdm

PROJECT_VERSION = "0.1.0"  # raised whenever a number's meaning changes

COLUMNS = """
    batch_size avg_time_per_epoch avg_time_per_epoch_ci95 extrapolated samples_per_second
    samples_per_second_ci95 first_step_seconds compute_samples_per_second input_bound_percent
    sustained_ratio tflops_per_second peak_memory_gb swap_written_gb train_loss status error epochs
    steps_timed steps_per_epoch data precision compile channels_last device machine chip cpu_cores
    gpu_cores memory_gb power os python framework project_version started_at
""".split()

# Rows that agree in these columns measure the same thing.
CONFIGURATION = """
    batch_size epochs data precision compile channels_last device framework project_version
""".split()


class UserError(Exception):
    """Something the user can mend, said in one line; exit code 1."""

    exit_code = 1


class UsageError(UserError):
    """A wrong flag, said in one line; exit code 2."""

    exit_code = 2


class DataUnreachable(Exception):
    """The real data is neither on disk nor to be had over the network."""


@dataclass(frozen=True)
class Experiment:
    """What is measured, and the defaults of its command line."""

    description: str
    backend: str
    task: str
    dataset: str
    model: str
    input_size: int
    epochs: int
    batch_sizes: str

    def results_path(self, results_dir: Path, machine: str) -> Path:
        """The one CSV file of this experiment on `machine`."""
        name = f"{machine}_{self.dataset}_{self.model}_{self.input_size}_{self.backend}_results.csv"
        return results_dir / f"results_{self.backend}_{self.task}" / name


# Command line


def parse_arguments(experiment: Experiment) -> argparse.Namespace:
    """The flags of a training experiment; bad usage ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        description=experiment.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--epochs", type=whole_number, default=experiment.epochs, help="default: %(default)s")
    add("--batch_sizes", type=batch_sizes, default=experiment.batch_sizes,
        help='comma-separated, walked in this order; default: "%(default)s"')  # fmt: skip
    add("--max_seconds", type=seconds, help="end each batch size after this much steady training")
    add("--data", choices=["auto", "real", "synthetic"], default="auto",
        help="auto: synthetic when the real data cannot be reached")  # fmt: skip
    add("--data_dir", type=Path, default=Path("data"), help="default: %(default)s")
    add("--device", type=device_name, default="auto", help="auto, cpu, mps, cuda or cuda:N")
    add("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    add("--compile", action="store_true", help="compile the model")
    if (experiment.backend, experiment.task) == ("pytorch", "cv"):
        add("--channels_last", action="store_true", help="images in NHWC memory order")
    add("--seed", type=int, default=42, help="default: %(default)s")
    add("--results_dir", type=Path, default=Path("results"), help="default: %(default)s")
    add("--machine_name", type=machine_name, help="file the results under this name")
    add("--cooldown", type=seconds, default=0.0, help="seconds of rest between batch sizes")
    add("--resume", action="store_true", help="skip batch sizes with a good row already")
    return parser.parse_args()


def whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def batch_sizes(text: str) -> list[int]:
    try:
        return [whole_number(part.strip()) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        form = 'whole numbers from 1 on, separated by commas, such as "32, 64"'
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {form}") from None


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def device_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, mps, cuda or cuda:N")
    return text


def machine_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} has more than letters, digits, '_', '-', '.'")
    return text


# Data


def choose_data(data: str, fetch: Callable[[], None]) -> str:
    """`real` once `fetch` has brought the data, else `synthetic` where `data` allows it.

    Raises:
        UserError: `data` is `real` and cannot be reached.
    """
    if data == "synthetic":
        return data
    # A download that stalls is a network failure too.
    socket.setdefaulttimeout(30)
    try:
        fetch()
    except DataUnreachable as error:
        if data == "real":
            fix = "connect to the network, put the data there by hand, or use --data=synthetic"
            raise UserError(f"--data=real: {error}; {fix}") from None
        tqdm.write(f"{error}: measuring on synthetic data that costs the same work.")
        return "synthetic"
    return "real"


def require_reachable(url: str, timeout: float = 10.0) -> None:
    """Raises DataUnreachable unless the server of `url` says within `timeout` s that it has it."""
    problem = ["no answer within 10 seconds"]

    def ask():
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=timeout).close()
            problem[0] = None
        except (urllib.error.URLError, OSError) as error:
            problem[0] = str(getattr(error, "reason", error))

    # In a thread, because a name look-up without network can hang for longer than the timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    if problem[0]:
        raise DataUnreachable(f"{url} cannot be reached ({problem[0]})")


# A fresh process


class Outcome(dict):
    """How a fresh process ended: `status`, then `value` or `error` (one line) and `details`."""


def run_in_fresh_process(function: Callable, *arguments) -> Outcome:
    """Call a top-level function in a spawned process and wait for how it ended.

    Status is `ok`, `out_of_memory`, `killed` (error names the signal), `user_error` or `error`.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        outcome = receiver.recv()
        process.join()
    except EOFError:
        process.join()
        outcome = _outcome_of_exit_code(process.exitcode)
    finally:
        process.kill()
        receiver.close()
    return outcome


def _call(sender, function: Callable, arguments: tuple) -> None:
    # Ctrl-C is the parent's to handle; and a parent that was killed leaves no orphan at work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = Outcome(status="ok", value=function(*arguments))
    except UserError as error:
        outcome = Outcome(status="user_error", error=str(error), exit_code=error.exit_code)
    except Exception as error:  # noqa: BLE001 - whatever a model raises is this row's result
        outcome = Outcome(
            status="out_of_memory" if is_out_of_memory(error) else "error",
            error=" ".join(f"{type(error).__name__}: {error}".split())[:300],
            details=traceback.format_exc(),
        )
    sender.send(outcome)
    sender.close()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _outcome_of_exit_code(code: int) -> Outcome:
    if code >= 0:
        return Outcome(status="error", error=f"the measuring process ended with exit code {code}")
    name = signal.Signals(-code).name
    # The system's out-of-memory killer sends SIGKILL; Metal aborts when an allocation fails.
    memory = " (often: out of memory)" if name in ("SIGKILL", "SIGABRT") else ""
    return Outcome(status="killed", error=f"ended by {name}{memory}", memory=bool(memory))


OUT_OF_MEMORY_NAMES = {"OutOfMemoryError", "ResourceExhaustedError"}
OUT_OF_MEMORY_WORDS = re.compile(
    r"out of memory|Invalid buffer size|can't allocate memory|bad_alloc|Cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|failed to allocate memory",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is how CUDA, Metal, a CPU allocator or TensorFlow says out of memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in OUT_OF_MEMORY_NAMES
        or (isinstance(error, RuntimeError | OSError) and bool(OUT_OF_MEMORY_WORDS.search(str(error))))
    )  # fmt: skip
