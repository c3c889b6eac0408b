# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "llama-cpp-python>=0.3.36", "gguf", "huggingface_hub", "filelock", "nvidia-ml-py>=12.535",
#   "packaging", "psutil", "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""How fast does this machine generate text with Llama 2 7B (chat, Q4_0) in llama.cpp?

Twenty questions are answered five times each, after llama-bench's two standard figures: `pp512`
(a prompt of 512 tokens) and `tg128` (128 tokens generated from an empty cache), five times each;
--depths measures them with so many tokens in the cache too, --parallel for so many users at once.
Inside the clock: evaluation of the prompt, generation, sampling. Outside: loading, a warm-up
generation, tokenizing. Before every answer the KV cache is emptied, so that no prompt is skipped,
and the sampler starts from --seed, so that repetitions of a question give the same text.
tokens_per_second: generated tokens over the time of generation, without the prompt's.
Model: --model, any GGUF; the default one is downloaded where it is missing, else a synthetic twin
with random weights and the same tensors takes its place, and is as fast.

    python llama2_test.py --num_questions=1 --num_times_per_question=1
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

import harness.cores
import harness.data
import harness.machine
import harness.soak
import harness.twins.gguf
import utils
from harness import PROJECT_VERSION, gguf_file, markdown
from harness.arguments import (
    CommandLine,
    counts,
    device_name,
    machine_name,
    path_name,
    seconds,
    seed,
    temperature,
    whole_number,
    whole_numbers,
)
from harness.awake import stay_awake
from harness.environment import settle_environment
from harness.frameworks import llama, llama_bench, llama_text
from harness.generation import (
    COLUMNS,
    SPEEDS,
    TEXT_COLUMNS,
    announce,
    failed_row,
    failed_turn,
    figure_parts,
    figures_of,
    next_turn,
    plan,
    report,
    results_path,
    run_and_collect,
    summarize,
)
from harness.launch import require_script
from harness.questions import QUESTIONS, questions_to_ask
from harness.results import UnreadableResults
from harness.soak import SUSTAINED
from harness.startup import one_line_errors, only_benchmark, require_saving, require_writable
from harness.sweep import failed, save

DEFAULT_MODEL = "llama-2-7b-chat.Q4_0.gguf"
EXPERIMENT = utils.Experiment(
    title="Llama 2 7B, text generation",
    place=150,
    chart="llamacpp_2_7b_chat_q4_0_gguf_tokens_per_second",
    description=__doc__,
    backend="llamacpp",
    task="generation",
    model=DEFAULT_MODEL.removesuffix(".gguf"),
    speeds=SPEEDS,
    model_flags={
        "flash_attn": ("auto", "on", "off"),
        "max_tokens": 500,
        "n_gpu_layers": -1,
        "split_mode": tuple(llama.SPLIT_MODES),
        "tensor_split": ("",),
        "n_ctx": 1024,
    },
    quick={
        "synthetic_model": "tinyllama-1.1b",
        "num_questions": "1",
        "num_times_per_question": "2",
        "max_tokens": "32",
        "bench_repetitions": "1",
    },
    columns=tuple(COLUMNS),
    text_columns=TEXT_COLUMNS,
    folder="results_llama2",
    generations=True,
)
HUB_REPOSITORY = "TheBloke/Llama-2-7B-Chat-GGUF"


# Command line


def parse_arguments() -> argparse.Namespace:
    parser = CommandLine(__doc__)
    add = parser.add_argument
    add("--model", "--path_to_gguf_model", default=DEFAULT_MODEL,
        help="a GGUF's path, or owner/repo:file.gguf on the Hub; default: %(default)s")  # fmt: skip
    add("--questions_file", type=path_name, help="one question a line, in place of the twenty")
    add("--system_prompt", default="", help="goes before every question")
    add("--num_questions", type=all_or_number, help="default: all")
    add("--num_times_per_question", type=whole_number, default=5, help="default: %(default)s")
    add("--max_tokens", type=whole_number, default=500, help="default: %(default)s")
    add("--bench_repetitions", type=int, default=5, help="of pp512 and tg128; default: 5")
    add("--depths", type=counts, default="0", help="tokens in the cache of pp512 and tg128, "
        'such as "0, 4096"; default: 0')  # fmt: skip
    add("--parallel", type=whole_numbers, default="1", help="so many users at once in pp512 and "
        'tg128, such as "1, 4, 16"; default: 1')  # fmt: skip
    add("--max_seconds", type=seconds, help="stop after the answer in which they are over")
    add("--cooldown", type=seconds, default=0.0, help="seconds of rest between answers")
    harness.soak.add_flag(add)
    add("--stream_output", action="store_true", help="print answers while they are generated")
    add("--n_ctx", type=whole_number, default=1024, help="context; default: %(default)s")
    add("--device", type=device_name, default="auto",
        help="auto or cuda: all GPUs; cpu, mps, or cuda:N for one of several cards")  # fmt: skip
    add("--n_gpu_layers", type=int, default=-1, help="layers on the GPU; default: -1, all")
    add("--split_mode", choices=list(llama.SPLIT_MODES), default="layer",
        help="how several GPUs share a model; default: %(default)s")  # fmt: skip
    add("--tensor_split", type=proportions, default="",
        help='each GPU\'s part, such as "3, 1"; default: by their free memory')  # fmt: skip
    add("--n_threads", type=whole_number, help="default: the (performance) cores")
    add("--flash_attn", choices=["auto", "on", "off"], default="auto", help="flash attention")
    add("--seed", type=seed, default=42, help="of every answer; default: %(default)s")
    add("--temperature", type=temperature, default=0.8, help="default: %(default)s")
    add("--data", choices=["auto", "real", "synthetic"], default="auto",
        help="auto: a synthetic twin when the default model cannot be reached")  # fmt: skip
    add("--data_dir", type=path_name, default=Path("data"), help="default: %(default)s")
    add("--synthetic_model", choices=list(harness.twins.gguf.ARCHITECTURES), default="llama-2-7b",
        help="which model's twin; default: %(default)s")  # fmt: skip
    add("--results_dir", type=path_name, default=Path("results"), help="default: %(default)s")
    add("--machine_name", type=machine_name, help="file the results under this name")
    add("--format", choices=["text", "markdown"], default="text",
        help="of the table in the end; markdown: llama-bench's")  # fmt: skip
    add("--verbose", action="store_true", help="show llama.cpp's own log")
    options = parser.parse_args()
    if ":" in options.device:
        if options.split_mode not in ("layer", "none") or options.tensor_split:
            parser.error(f"--device={options.device}: one card shares with none; leave out "
                         "--split_mode and --tensor_split")  # fmt: skip
        options.split_mode = "none"
    return options


def all_or_number(text: str) -> int | None:
    return None if text == "all" else whole_number(text)


def proportions(text: str) -> str:
    """As the row says it: `3,1`."""
    try:
        return ",".join(map(str, counts(text))) if text else text
    except argparse.ArgumentTypeError:
        form = 'whole numbers separated by commas, such as "3, 1"'
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {form}") from None


# Model


def find_model(options) -> Path:
    """The file to measure: the given one, the downloaded default one, or the synthetic twin.

    Raises:
        UserError: there is none, or it is no GGUF.
    """
    llama.require_installed("llama_cpp", "llama-cpp-python")
    given = options.model != DEFAULT_MODEL
    if given and options.data == "synthetic":
        raise utils.UsageError("--model: --data=synthetic measures a twin instead")
    if options.data != "synthetic" and (given or Path(DEFAULT_MODEL).is_file()):
        path = gguf_file.find(options.model, options.data_dir)
    else:
        path = download_or_twin(options)
    gguf_file.require_gguf(path)
    return path


def download_or_twin(options) -> Path:
    """The default model in the data directory, or its twin where `--data` allows it."""
    path = None

    def fetch():
        nonlocal path
        folder = harness.data.from_hub(HUB_REPOSITORY, "model", [DEFAULT_MODEL], options.data_dir)
        path = folder / DEFAULT_MODEL

    if harness.data.choose_data(options.data, fetch) == "real":
        return path
    llama.require_installed("gguf", "gguf")
    return harness.twins.gguf.ensure_twin(
        harness.twins.gguf.ARCHITECTURES[options.synthetic_model],
        llama_text.LLAMA2_PROMPT.format(" ".join(QUESTIONS)),
        options.data_dir / "synthetic",
    )


# Measuring


def measure_all(sender, options) -> list[Path | None]:
    """Load the model and measure the whole plan; a row is saved as soon as it is there.

    Returns:
        The files that the rows are in; None of one that only the terminal has.
    """
    llm = llama.load(options)
    facts = {**llama.facts(llm, options), "project_version": PROJECT_VERSION}
    facts["questions_file"] = options.questions_file and options.questions_file.name
    prompts = {
        q: llama_text.prompt_tokens(llm, q, options.system_prompt) for q in options.questions
    }
    llama_text.require_context(list(prompts.values()), options)
    path = results_path(options.results_dir, facts)
    try:
        require_saving(path)
    except UnreadableResults as error:
        raise utils.UserError(str(error)) from None
    announce(facts, options)
    if options.thermal_protocol == SUSTAINED:
        facts |= llama_bench.soak(llm, options)
    sender.send(facts)
    start = time.monotonic()
    walk, files = rows_of(llm, prompts, options), []
    generated = False
    for row in tqdm(walk, desc="llama", total=len(options.plan), unit=" rows", disable=None):
        row = {**facts, **row}
        files.append(save(path, row, COLUMNS))
        sender.send(row)
        report(row)
        generated |= bool(row.get("tokens_per_second"))  # a prompt alone is no number to keep
        if options.max_seconds and generated and time.monotonic() - start >= options.max_seconds:
            tqdm.write(f"--max_seconds={options.max_seconds:g} are over: the rest is left out")
            break
        time.sleep(options.cooldown)
    return files


def rows_of(llm, prompts: dict[str, list[int]], options) -> Iterator[dict]:
    """What is measured of every row of the plan, in contexts as large as each needs."""
    meter, states = llama.meter_of(llm), {}
    for figure, turns in itertools.groupby(options.plan, lambda turn: figure_parts(turn[0])):
        turns = list(turns)
        try:
            if figure:
                yield from llama_bench.rows(llm, turns, states, options, meter)
            else:
                yield from llama_text.rows(llm, turns, prompts, options, meter)
        except (MemoryError, RuntimeError) as error:  # no context: one row stands for all of it
            yield failed_turn(turns[0], error)


def main() -> None:
    options = parse_arguments()
    facts, rows = {}, []
    with one_line_errors(rows, options.results_dir), only_benchmark() as alone:
        stay_awake()
        require_script(measure_all)
        options.environment = settle_environment()
        require_writable(options.results_dir)
        options.questions = questions_to_ask(options.questions_file, options.num_questions)
        options.num_questions = len(options.questions)
        options.plan = plan(
            options, options.questions, figures_of(options.depths, options.parallel)
        )
        options.model_path = find_model(options)
        options.n_threads = options.n_threads or harness.cores.performance_cores()
        options.other_benchmark_running = not alone
        options.other_load_percent, options.busiest = harness.machine.other_load()
        outcome = run_and_collect(measure_all, options, facts, rows)
        files = outcome.get("value", [])
        if outcome["status"] != "ok":
            rows.append(failed_row(outcome, facts, next_turn(options.plan, rows)))
        path = results_path(options.results_dir, facts)
        if outcome["status"] != "ok":
            files = [save(path, rows[-1], COLUMNS)]
            report(rows[-1])
        if options.format == "markdown":
            print(markdown.llama_bench_table(rows))
        summarize(rows, path)
    sys.exit(any(failed(row) for row in rows) or any(file != path for file in files))


if __name__ == "__main__":
    main()
