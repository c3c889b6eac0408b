"""The rows of the LLM experiments: what is asked, columns and file, how a row is timed and saved.

Imports no ML framework.
"""

import contextlib
import math
import multiprocessing
import platform
import statistics
import sys
import threading
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from harness.bandwidth import measured_bandwidth
from harness.columns import columns_of
from harness.disturbance import OTHERS_PERCENT
from harness.endings import BROKEN_HEAP, is_out_of_memory
from harness.experiment import Speed
from harness.nvidia import driver_version, has_card
from harness.process import UsageError, UserError, run_in_fresh_process, tell
from harness.questions import QUESTIONS
from harness.soak import Soak
from harness.terminal import Progress, disturbances
from harness.windows import student_t

COLUMNS = list(columns_of("LM"))
TEXT_COLUMNS = ()
SPEEDS = (
    Speed("tokens_per_second", "tokens/s", "tokens per second", "text generation", True),
    Speed("prompt_tokens_per_second", "tokens/s", "tokens per second", "prompt", True, "prompt"),
)
# Seconds without a row: an answer of a large model takes long on a slow processor.
PATIENCE = 7200.0
FIGURES = ("pp512", "tg128")  # llama-bench's, named in place of a question


# What is asked


def num_questions(text: str) -> int:
    if text == "all":
        return len(QUESTIONS)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= len(QUESTIONS):
        raise ArgumentTypeError(f"{text!r} is not all, or a number from 1 to 20")
    return int(text)


def plan(options, questions=QUESTIONS, figures=FIGURES) -> list[tuple[str, int]]:
    """(question or figure, iteration) of every row, in the order of measuring.

    Args:
        options: with `bench_repetitions`, `num_questions` and `num_times_per_question`.
    """
    asked = [(figure, options.bench_repetitions) for figure in figures]
    asked += [(q, options.num_times_per_question) for q in questions[: options.num_questions]]
    return [(name, iteration + 1) for name, count in asked for iteration in range(count)]


def figures_of(depths: list[int], parallel: list[int]) -> list[str]:
    """llama-bench's figures with so many tokens in the cache, and of so many sequences at once.

    `pp512`, `tg128`; `pp512@d4096` after 4096 tokens; `pp512@p4` for 4 prompts in one batch.
    """
    ends = ["" if depth == 0 else f"@d{depth}" for depth in depths]
    ends += ["" if count == 1 else f"@p{count}" for count in parallel]
    return [figure + end for end in dict.fromkeys(ends) for figure in FIGURES]


def figure_parts(question: str) -> tuple[str, int, int] | None:
    """Figure, depth and sequences in parallel of `tg128@d4096`; None of a question."""
    figure, _, end = question.partition("@")
    if figure not in FIGURES:
        return None
    number = int(end[1:] or 0)
    return figure, number if end.startswith("d") else 0, number if end.startswith("p") else 1


# Files and processes


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
        progress = Progress("the model")
        return run_in_fresh_process(function, sender, options, progress=progress, patience=PATIENCE)
    finally:
        sender.close()
        thread.join()
        receiver.close()


def soaked(generate: Callable[[], dict]) -> dict:
    """Generate until the speed is steady; the columns of the rows that are measured then.

    Args:
        generate: makes one repetition of tg128, and returns its row.
    """
    soak = Soak()
    while not soak.over(time.monotonic(), generate()["tokens_per_second"]):
        tell("soaking", f"for {soak.seconds:.0f} s")
    tqdm.write(f"soaked for {soak.seconds:.0f} s")
    return soak.columns()


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
    error = outcome["error"]
    if BROKEN_HEAP.search(error):
        driver = driver_version()
        error += f"; {facts['framework']}" + (f", NVIDIA driver {driver}" if driver else "")
    return row | {"status": outcome["status"], "error": error}


def next_turn(turns: list[tuple[str, int]], rows: list[dict]) -> tuple[str, int]:
    """The turn of the plan after that of the newest row."""
    if not rows:
        return turns[0]
    newest = rows[-1]["question"], rows[-1]["question_iter"]
    return turns[min(turns.index(newest) + 1, len(turns) - 1)]


def attempt(turn: tuple[str, int], measure: Callable[[], dict]) -> dict:
    """The row of a turn: what `measure` returns, or how it failed."""
    try:
        row = {"started_at": now(), "status": "ok", **measure()}
    except (MemoryError, RuntimeError) as error:
        return failed_turn(turn, error)
    return {"question": turn[0], "question_iter": turn[1], **row}


def failed_turn(turn: tuple[str, int], error: Exception) -> dict:
    """The row of a turn that ended in an error."""
    status = "out_of_memory" if is_out_of_memory(error) else "error"
    row = {"question": turn[0], "question_iter": turn[1], "started_at": now()}
    return row | {"status": status, "error": str(error)}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# The terminal


def announce(facts: dict, options) -> None:
    """What will run, on which machine; and what on this machine will disturb the numbers."""
    print(f"{facts['model']} ({facts['data']}, {facts['quantization']}), {facts['framework']}")
    on_gpu = f", {facts['layers_on_gpu']} of {facts['layers']} layers on the GPU"
    on_gpu = on_gpu if facts["layers"] else ""
    if gigabytes := facts.get("weights_on_gpu_gb"):
        on_gpu += f" ({gigabytes:.2f} of {facts['weights_gb']:.2f} GB)"
    print(f"machine {facts['machine']}, device {facts['device']}{on_gpu}")
    print(
        f"questions: {options.num_questions}, answers to each: {options.num_times_per_question}, "
        f"of up to {options.max_tokens} tokens"
    )
    notes = disturbances(facts, options.busiest)
    layers = options.device == "auto" and getattr(options, "n_gpu_layers", 0)
    apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    if facts["device"] == "cpu" and layers and (apple or has_card()):
        notes.append(
            "this build of llama-cpp-python computes on the CPU, although there is a GPU; see the "
            "README for how to install it with Metal or CUDA"
        )
    for note in notes:
        print(f"Note: {note}")
    print(end="", flush=True)


def report(row: dict) -> None:
    """One line for a finished row."""
    name = f"{row['question'].partition('?')[0]} ({row['question_iter']})"
    tell(name)
    if row["status"] != "ok":
        tqdm.write(f"{name}: {row['status']}: {row['error']}")
    elif row["question"].startswith("pp512"):
        tqdm.write(f"{name}: {row['prompt_tokens_per_second']:.2f} tokens/s")
    elif row["tokens_per_second"]:
        each = row.get("tokens_per_second_each")
        each = f", {each:.2f} of each" if each else ""
        tokens = row["answer_token_len"]
        tqdm.write(f"{name}: {tokens} tokens, {row['tokens_per_second']:.2f} tokens/s{each}")
    else:
        tqdm.write(f"{name}: an answer of {row['answer_token_len']} tokens has no rate")


def summarize(rows: list[dict], path: Path) -> None:
    """The table at the end: means over the good rows, with their 95 % intervals."""
    print()
    figures = dict.fromkeys(row["question"] for row in rows if figure_parts(row["question"]))
    speeds = {"pp512": "prompt_tokens_per_second", "tg128": "tokens_per_second"}
    for name, column, unit in (
        *((figure, speeds[figure_parts(figure)[0]], "tokens/s") for figure in figures),
        ("answers", "tokens_per_second", "tokens/s"),
        ("answers, prompt", "prompt_tokens_per_second", "tokens/s"),
        ("answers, first token after", "time_to_first_token", "s"),
        ("answers, outside the model", "outside_model_percent", "%"),
    ):
        of = name.partition(",")[0]
        good = [row for row in rows if row["status"] == "ok" and kind(row) == of]
        values = [row[column] for row in good if row.get(column) is not None]
        if values:
            mean, half_width = mean_and_interval(values)
            interval = "" if half_width is None else f" +/- {half_width:.3g}"
            print(f"{name:<27}{mean:>9.4g}{interval} {unit} ({len(values)} rows)")
    bandwidth = measured_bandwidth(path.parents[1], rows[0].get("machine")) if rows else None
    for verdict in verdicts(rows, bandwidth):
        print(verdict)
    print(f"\nResults: {path}")


def kind(row: dict) -> str:
    """Which number of the summary a row belongs to: the figure's, or that of the answers."""
    return row["question"] if figure_parts(row["question"]) else "answers"


def mean_and_interval(values: list[float]) -> tuple[float, float | None]:
    """Mean, and half-width of its 95 % t interval; None for a single value."""
    if len(values) < 2:
        return values[0], None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), student_t(len(values)) * error


def verdicts(rows: list[dict], bandwidth: float | None = None) -> list[str]:
    """Plain sentences on what a reader must know about the numbers.

    Args:
        bandwidth: GB/s of the machine's memory, where selfcheck measured it.
    """
    found = []
    outside = mean_of(rows, "outside_model_percent", "answers")
    if (outside or 0) > 5:
        found.append(
            f"{outside:.0f} % of the time of the answers went to sampling and Python, outside of "
            "the model; tokens per second leave it out"
        )
    read = mean_of(rows, "bandwidth_gb_per_second", "tg128")
    if read and bandwidth:
        share = 100 * read / bandwidth
        limit = "near its limit" if share > 70 else "memory is not what limits it"
        found.append(
            f"generating read {read:.3g} GB/s, {share:.0f} % of the bandwidth of memory that "
            f"selfcheck measured: {limit}"
        )
    elif read:
        found.append(f"generating read {read:.3g} GB/s; selfcheck.py measures what share that is")
    if used := {row["flash_attn_used"] for row in rows if row.get("flash_attn_used")}:
        found.append(f"flash attention was {' and '.join(sorted(used))}")
    sustained = [row["sustained_ratio"] for row in rows if row.get("sustained_ratio")]
    if sustained and sustained[-1] < 0.9:
        found.append(
            "throttled, or slowed by another program: "
            f"the answers ended at {sustained[-1]:.2f} of their first speed"
        )
    others = mean_of(rows, "other_load_percent")
    if (others or 0) > OTHERS_PERCENT:
        found.append(f"other programs took {others:.0f} % of the processor meanwhile")
    failed = sum(row["status"] != "ok" for row in rows)
    if failed:
        found.append(f"{failed} of {len(rows)} rows failed")
    if any(row["data"] == "synthetic" for row in rows):
        found.append("synthetic model: random weights, the same tensors")
    return found


def mean_of(rows: list[dict], column: str, name: str | None = None) -> float | None:
    """Mean of a column over the good rows, or over those of one figure or of the answers."""
    values = [
        row[column]
        for row in rows
        if row["status"] == "ok" and row.get(column) is not None and name in (None, kind(row))
    ]
    return statistics.fmean(values) if values else None
