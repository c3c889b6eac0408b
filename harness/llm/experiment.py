"""An experiment on a language model: its flags and columns, what is asked, how a row is made.

Imports no ML framework.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

import harness.soak
from harness.arguments import number_or_all, path_name, seconds, temperature, whole_number
from harness.bandwidth import measured_bandwidth
from harness.columns import columns_of
from harness.disturbance import Times, other_load_percent
from harness.endings import is_out_of_memory
from harness.experiment import Experiment, Speed
from harness.llm.summary import summary
from harness.process import tell
from harness.questions import figures_of, questions_to_ask
from harness.soak import Soak

COLUMNS = columns_of("LM")
SPEEDS = (
    Speed("tokens_per_second", "tokens/s", "tokens per second", "text generation", True),
    Speed("prompt_tokens_per_second", "tokens/s", "tokens per second", "prompt", True, "prompt"),
)
QUICK = {
    "synthetic_model": "tinyllama-1.1b",
    "num_questions": "1",
    "num_times_per_question": "2",
    "max_tokens": "32",
    "bench_repetitions": "1",
}


@dataclass(frozen=True)
class LanguageModel(Experiment):
    """One process loads a model and is asked everything; each answer and repetition is a row."""

    speeds: tuple[Speed, ...] = SPEEDS
    columns: tuple[str, ...] = COLUMNS
    quick: dict[str, str] = field(default_factory=lambda: dict(QUICK))
    one_process: bool = True
    generations: bool = True

    @property
    def walked(self) -> str:
        return "questions"

    @property
    def configured(self) -> list[str]:
        asked = ["question", "question_iter", "system_prompt", "temperature", "seed", "n_threads"]
        return [*asked, *super().configured]

    def points(self, options: argparse.Namespace) -> list[dict]:
        """Each question or figure, and which repetition of it, in the order of asking."""
        figures = figures_of(options.depths, options.parallel)
        asked = [(figure, options.bench_repetitions) for figure in figures]
        asked += [(question, options.num_times_per_question) for question in options.questions]
        return [
            {"question": name, "question_iter": iteration + 1}
            for name, count in asked
            for iteration in range(count)
        ]

    def results_path(self, results_dir: Path, machine: str, model: str | None = None) -> Path:
        return results_dir / self.results_folder / f"{machine}_{model or self.model}_results.csv"

    def name(self, point: dict) -> str:
        return f"{point['question'].partition('?')[0]} ({point['question_iter']})"

    def summary(self, rows: list[dict], options: argparse.Namespace) -> list[str]:
        bandwidth = measured_bandwidth(options.results_dir, rows[0]["machine"])
        return summary(rows, getattr(options, "format", "text"), bandwidth)


def add_flags(parser: argparse.ArgumentParser, twins: list[str]) -> None:
    """The flags of every experiment on a language model.

    Args:
        twins: models of which there are synthetic ones; the first is the default.
    """
    add = parser.add_argument
    parser.set_defaults(depths=[0], parallel=[1])
    add("--questions_file", type=path_name, help="one question a line, in place of the twenty")
    add("--num_questions", type=number_or_all, default="all", help="default: %(default)s")
    add("--num_times_per_question", type=whole_number, default=5, help="default: %(default)s")
    add("--bench_repetitions", type=int, default=5, help="of pp512 and tg128; default: 5")
    add("--max_seconds", type=seconds, help="stop after the answer in which they are over")
    harness.soak.add_flag(add)
    add("--stream_output", action="store_true", help="print answers while they are generated")
    add("--temperature", type=temperature, default=0.8, help="default: %(default)s")
    add("--data", choices=["auto", "real", "synthetic"], default="auto",
        help="auto: a synthetic twin when the default model cannot be reached")  # fmt: skip
    add("--synthetic_model", choices=twins, default=twins[0],
        help="which model's twin; default: %(default)s")  # fmt: skip


def settle_flags(options: argparse.Namespace) -> None:
    """Raises UsageError where there are not so many questions."""
    options.questions = questions_to_ask(options.questions_file, options.num_questions)


# Rows


def attempt(point: dict, measure: Callable[[], dict]) -> dict:
    """The row of a point: what `measure` returns, or how it failed."""
    began = {**point, "started_at": datetime.now(UTC).isoformat(timespec="seconds")}
    before = Times.now()
    try:
        row = measure()
    except (MemoryError, RuntimeError) as error:
        return began | failure(error)
    load = other_load_percent(Times.now().since(before))
    return began | {"other_load_percent": load} | row


def failure(error: Exception) -> dict:
    """The columns of a row that ended in an error."""
    status = "out_of_memory" if is_out_of_memory(error) else "error"
    return {"status": status, "error": str(error)}


def soaked(generate: Callable[[], dict]) -> dict:
    """Generate until the speed is steady; the columns of the rows that are measured then.

    Args:
        generate: makes one repetition of tg128, and returns its row.
    """
    soak = Soak()
    while not soak.over(time.monotonic(), generate()["tokens_per_second"]):
        tell("soaking", f"for {soak.seconds:.0f} s")
    tqdm.write(f"soaked for {soak.seconds:.0f} s")
    return {name: value for name, value in soak.columns().items() if value is not None}


def print_piece(text: str) -> None:
    print(text, end="", flush=True)
