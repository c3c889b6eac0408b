"""The rows of the LLM experiment: columns and file, from a fresh process to the terminal."""

import contextlib
import math
import multiprocessing
import platform
import statistics
import sys
import threading
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from harness.experiment import Speed
from harness.machine import output_of
from harness.process import UsageError, UserError, run_in_fresh_process
from harness.questions import QUESTIONS
from harness.results import MACHINE_COLUMNS
from harness.terminal import disturbances

COLUMNS = [
    "question",
    "question_iter",
    "total_time",
    "answer",
    "answer_char_len",
    "chars_per_second",
    "answer_token_len",
    "tokens_per_second",
    "prompt_token_len",
    "prompt_tokens_per_second",
    "time_to_first_token",
    "outside_model_percent",
    "status",
    "error",
    "data",
    "model",
    "architecture",
    "parameters",
    "quantization",
    "file_size_gb",
    "max_tokens",
    "n_ctx",
    "n_gpu_layers",
    "layers_on_gpu",
    "layers",
    "n_threads",
    "flash_attn",
    "seed",
    "temperature",
    *MACHINE_COLUMNS,
]

TEXT_COLUMNS = ("question", "answer", "model", "architecture", "quantization")
SPEEDS = (
    Speed("tokens_per_second", "tokens/s", "tokens per second", "text generation", True),
    Speed("prompt_tokens_per_second", "tokens/s", "tokens per second", "prompt", True, "prompt"),
)


# What is asked


def num_questions(text: str) -> int:
    if text == "all":
        return len(QUESTIONS)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= len(QUESTIONS):
        raise ArgumentTypeError(f"{text!r} is not all, or a number from 1 to 20")
    return int(text)


def plan(options) -> list[tuple[str, int]]:
    """(question, iteration) of every row, in the order of measuring."""
    asked = [(figure, options.bench_repetitions) for figure in ("pp512", "tg128")]
    asked += [(q, options.num_times_per_question) for q in QUESTIONS[: options.num_questions]]
    return [(question, iteration + 1) for question, count in asked for iteration in range(count)]


# Rows and files


def results_path(results_dir: Path, facts: dict, folder: str = "results_llama2") -> Path:
    """The one CSV file of a model on a machine."""
    return results_dir / folder / f"{facts['machine']}_{facts['model']}_results.csv"


def run_and_collect(function: Callable, options, facts: dict, rows: list[dict]) -> dict:
    """Call `function(send, options)` in a fresh process; returns how it ended.

    What it sends arrives while it runs: first `facts`, then the `rows`, so that they are known here
    when llama.cpp crashes.
    """
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)

    def collect():
        # A message that a killed process left half written is an OSError.
        with contextlib.suppress(EOFError, OSError):
            facts.update(receiver.recv())
            while True:
                rows.append(receiver.recv())

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        return run_in_fresh_process(function, sender, options)
    finally:
        sender.close()
        thread.join()
        receiver.close()


def failed_row(outcome: dict, facts: dict, where: tuple[str, int]) -> dict:
    """The row at which the measuring process ended.

    Args:
        where: question and iteration.

    Raises:
        UserError: it did not even get the model loaded.
    """
    if outcome["status"] == "user_error":
        raise (UsageError if outcome["exit_code"] == 2 else UserError)(outcome["error"])
    if details := outcome.get("details"):
        print(details, file=sys.stderr)
    if not facts:
        raise UserError(f"loading the model failed: {outcome['error']}")
    question, iteration = where
    row = {**facts, "question": question, "question_iter": iteration, "started_at": now()}
    return row | {"status": outcome["status"], "error": outcome["error"]}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def announce(facts: dict, options) -> None:
    """What will run, on which machine; and what on this machine will disturb the numbers."""
    print(f"{facts['model']} ({facts['data']}, {facts['quantization']}), {facts['framework']}")
    on_gpu = f"{facts['layers_on_gpu']} of {facts['layers']} layers on the GPU"
    on_gpu = f", {on_gpu}" if facts["layers"] else ""
    print(f"machine {facts['machine']}, device {facts['device']}{on_gpu}")
    print(
        f"questions: {options.num_questions}, answers to each: {options.num_times_per_question}, "
        f"of up to {options.max_tokens} tokens"
    )
    notes = disturbances(facts, options.busiest)
    if facts["device"] == "cpu" and getattr(options, "n_gpu_layers", 0) and has_gpu():
        notes.append(
            "this build of llama-cpp-python computes on the CPU, although there is a GPU; see the "
            "README for how to install it with Metal or CUDA"
        )
    for note in notes:
        print(f"Note: {note}")
    print(end="", flush=True)


def has_gpu() -> bool:
    """Whether there is a GPU that llama.cpp could use: of an Apple chip, or an NVIDIA card."""
    apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    return apple or output_of("nvidia-smi", "-L").startswith("GPU")


def report(row: dict) -> None:
    """One line for a finished row."""
    name = f"{row['question'].partition('?')[0]} ({row['question_iter']})"
    if row["status"] != "ok":
        tqdm.write(f"{name}: {row['status']}: {row['error']}")
    elif row["question"] == "pp512":
        tqdm.write(f"{name}: {row['prompt_tokens_per_second']:.2f} tokens/s")
    elif row["tokens_per_second"]:
        tokens = row["answer_token_len"]
        tqdm.write(f"{name}: {tokens} tokens, {row['tokens_per_second']:.2f} tokens/s")
    else:
        tqdm.write(f"{name}: an answer of {row['answer_token_len']} tokens has no rate")


def summarize(rows: list[dict], path: Path) -> None:
    """The table at the end: means over the good rows, with their 95 % intervals."""
    print()
    for name, column, unit in (
        ("pp512", "prompt_tokens_per_second", "tokens/s"),
        ("tg128", "tokens_per_second", "tokens/s"),
        ("answers", "tokens_per_second", "tokens/s"),
        ("answers, prompt", "prompt_tokens_per_second", "tokens/s"),
        ("answers, first token after", "time_to_first_token", "s"),
        ("answers, outside the model", "outside_model_percent", "%"),
    ):
        values = [row[column] for row in rows if belongs(row, name) and row.get(column) is not None]
        if values:
            mean, half_width = mean_and_interval(values)
            interval = "" if half_width is None else f" +/- {half_width:.3g}"
            print(f"{name:<27}{mean:>9.4g}{interval} {unit} ({len(values)} rows)")
    for verdict in verdicts(rows):
        print(verdict)
    print(f"\nResults: {path}")


def belongs(row: dict, name: str) -> bool:
    """Whether a good row is one of the figure `name`, or of the answers."""
    figure = row["question"] if row["question"] in ("pp512", "tg128") else "answers"
    return row["status"] == "ok" and name.startswith(figure)


def mean_and_interval(values: list[float]) -> tuple[float, float | None]:
    """Mean, and half-width of its 95 % t interval; None for a single value."""
    from scipy.special import stdtrit  # Student's t; scipy.stats takes a second more to import

    if len(values) < 2:
        return values[0], None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(stdtrit(len(values) - 1, 0.975)) * error


def verdicts(rows: list[dict]) -> list[str]:
    """Plain sentences on what a reader must know about the numbers."""
    found = []
    outside = [row.get("outside_model_percent") for row in rows if belongs(row, "answers")]
    outside = [percent for percent in outside if percent is not None]
    if outside and statistics.fmean(outside) > 5:
        found.append(
            f"{statistics.fmean(outside):.0f} % of the time of the answers went to sampling and "
            "Python, outside of the model; tokens per second leave it out"
        )
    failed = sum(row["status"] != "ok" for row in rows)
    if failed:
        found.append(f"{failed} of {len(rows)} rows failed")
    if any(row["data"] == "synthetic" for row in rows):
        found.append("synthetic model: random weights, the same tensors")
    return found
