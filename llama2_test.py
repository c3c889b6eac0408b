# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "llama-cpp-python", "gguf", "huggingface_hub", "filelock", "psutil", "py-cpuinfo", "scipy",
#   "tqdm",
# ]
# ///
"""How fast does this machine generate text with Llama 2 7B (chat, Q4_0) in llama.cpp?

Twenty questions are answered five times each, after llama-bench's two standard figures: `pp512`
(a prompt of 512 tokens) and `tg128` (128 tokens generated from an empty cache), five times each.
Inside the clock: evaluation of the prompt, generation, sampling. Outside: loading, a warm-up
generation, tokenizing. Before every answer the KV cache is emptied, so that no prompt is skipped,
and the sampler starts from --seed, so that repetitions of a question give the same text.
tokens_per_second: generated tokens over the time of generation, without the prompt's.
Model: --path_to_gguf_model, any GGUF; the default one is downloaded where it is missing, else a
synthetic twin with random weights and the same tensors takes its place, and is as fast.

    python llama2_test.py --num_questions=1 --num_times_per_question=1
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

import harness.data
import harness.machine
import harness.twins.gguf
import utils
from harness import PROJECT_VERSION
from harness.arguments import (
    CommandLine,
    machine_name,
    path_name,
    seed,
    temperature,
    whole_number,
)
from harness.frameworks import llama
from harness.generation import (
    COLUMNS,
    SPEEDS,
    TEXT_COLUMNS,
    announce,
    failed_row,
    now,
    num_questions,
    plan,
    report,
    results_path,
    run_and_collect,
    summarize,
)
from harness.launch import require_script
from harness.questions import QUESTIONS
from harness.results import UnreadableResults, read_rows
from harness.startup import one_line_errors, only_benchmark, require_writable
from harness.sweep import save

DEFAULT_MODEL = "llama-2-7b-chat.Q4_0.gguf"
EXPERIMENT = utils.Experiment(
    title="Llama 2 7B, text generation",
    chart="llamacpp_2_7b_chat_q4_0_gguf_tokens_per_second",
    description=__doc__,
    backend="llamacpp",
    task="generation",
    model=DEFAULT_MODEL.removesuffix(".gguf"),
    speeds=SPEEDS,
    model_flags={"flash_attn": False, "max_tokens": 500, "n_gpu_layers": -1, "n_ctx": 1024},
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
    add(
        "--path_to_gguf_model",
        type=path_name,
        default=Path(DEFAULT_MODEL),
        help="default: %(default)s",
    )
    add("--num_questions", type=num_questions, default="all", help="all, or 1 to 20")
    add("--num_times_per_question", type=whole_number, default=5, help="default: %(default)s")
    add("--max_tokens", type=whole_number, default=500, help="default: %(default)s")
    add("--bench_repetitions", type=int, default=5, help="of pp512 and tg128; default: 5")
    add("--stream_output", action="store_true", help="print answers while they are generated")
    add("--n_ctx", type=whole_number, default=1024, help="context; default: %(default)s")
    add("--n_gpu_layers", type=int, default=-1, help="layers on the GPU; default: -1, all")
    add("--n_threads", type=whole_number, help="default: the (performance) cores")
    add("--flash_attn", action="store_true", help="flash attention")
    add("--seed", type=seed, default=42, help="of every answer; default: %(default)s")
    add("--temperature", type=temperature, default=0.8, help="default: %(default)s")
    add("--data", choices=["auto", "real", "synthetic"], default="auto",
        help="auto: a synthetic twin when the default model cannot be reached")  # fmt: skip
    add("--data_dir", type=path_name, default=Path("data"), help="default: %(default)s")
    add("--synthetic_model", choices=list(harness.twins.gguf.ARCHITECTURES), default="llama-2-7b",
        help="which model's twin; default: %(default)s")  # fmt: skip
    add("--results_dir", type=path_name, default=Path("results"), help="default: %(default)s")
    add("--machine_name", type=machine_name, help="file the results under this name")
    add("--verbose", action="store_true", help="show llama.cpp's own log")
    return parser.parse_args()


# Model


def find_model(options) -> Path:
    """The file to measure: the given one, the downloaded default one, or the synthetic twin.

    Raises:
        UserError: there is none, or it is no GGUF.
    """
    llama.require_installed("llama_cpp", "llama-cpp-python")
    path = options.path_to_gguf_model
    given = path != Path(DEFAULT_MODEL)
    if given and options.data == "synthetic":
        raise utils.UsageError("--path_to_gguf_model: --data=synthetic measures a twin instead")
    if given and not path.is_file():
        raise utils.UsageError(f"--path_to_gguf_model={path}: there is no such file")
    if not path.is_file() or options.data == "synthetic":
        path = download_or_twin(options)
    llama.require_gguf(path)
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
        llama.LLAMA2_PROMPT.format(" ".join(QUESTIONS)),
        options.data_dir / "synthetic",
    )


# Measuring


def measure_all(sender, options) -> None:
    """Load the model and measure the whole plan; a row is saved as soon as it is there."""
    llm, log = llama.load(options)
    facts = llama.shared_columns(llm, log, options)
    facts["project_version"] = PROJECT_VERSION
    prompts = {q: llama.prompt_tokens(llm, q) for q in QUESTIONS[: options.num_questions]}
    llama.require_context(list(prompts.values()), options)
    path = results_path(options.results_dir, facts)
    try:
        read_rows(path)  # before the first minute is spent
    except UnreadableResults as error:
        raise utils.UserError(str(error)) from None
    announce(facts, options)
    sender.send(facts)
    warm_up(llm, prompts[QUESTIONS[0]], options)
    for question, iteration in tqdm(plan(options), desc="llama", unit=" rows", disable=None):
        row = {**facts, "question": question, "question_iter": iteration, "started_at": now()}
        try:
            row |= {"status": "ok", **measure(llm, question, prompts.get(question), options)}
        except RuntimeError as error:
            row |= {"status": "error", "error": str(error)}
        save(path, row, COLUMNS)
        sender.send(row)
        report(row)


def warm_up(llm, tokens: list[int], options) -> None:
    """Keep out of the rows what the first call of anything costs."""
    shorter = argparse.Namespace(**{**vars(options), "max_tokens": min(16, options.max_tokens)})
    generate(llm, tokens, shorter)
    if options.bench_repetitions:
        llama.bench_prompt(llm)


def measure(llm, question: str, tokens: list[int] | None, options) -> dict:
    """The measured columns of one answer, or of one of llama-bench's figures."""
    if question == "pp512":
        return llama.bench_prompt(llm)
    if question == "tg128":
        return llama.bench_generation(llm)
    if not options.stream_output:
        return generate(llm, tokens, options)
    print(f"\n{question}", flush=True)
    measured = generate(llm, tokens, options, show=print_piece)
    print(flush=True)
    return measured


def generate(llm, tokens: list[int], options, show=None) -> dict:
    return llama.generate(llm, tokens, options.max_tokens, options.seed, options.temperature, show)


def print_piece(text: str) -> None:
    print(text, end="", flush=True)


def main() -> None:
    options = parse_arguments()
    facts, rows = {}, []
    with one_line_errors(rows, options.results_dir), only_benchmark() as alone:
        require_script(measure_all)
        require_writable(options.results_dir)
        options.model_path = find_model(options)
        options.n_threads = options.n_threads or llama.default_threads()
        options.other_benchmark_running = not alone
        options.other_load_percent, options.busiest = harness.machine.other_load()
        outcome = run_and_collect(measure_all, options, facts, rows)
        if outcome["status"] != "ok":
            rows.append(failed_row(outcome, facts, plan(options)[len(rows)]))
            save(results_path(options.results_dir, facts), rows[-1], COLUMNS)
            report(rows[-1])
        summarize(rows, results_path(options.results_dir, facts))
    sys.exit(any(row["status"] != "ok" for row in rows))


if __name__ == "__main__":
    main()
