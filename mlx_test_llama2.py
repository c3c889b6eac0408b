# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "mlx>=0.32; sys_platform == 'darwin' and platform_machine == 'arm64'",
#   "mlx[cpu]>=0.32; sys_platform == 'linux'",
#   "mlx-lm>=0.32", "huggingface_hub", "numpy", "filelock", "nvidia-ml-py>=12.535", "packaging",
#   "psutil", "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""How fast does this machine generate text with Llama 2 7B (chat, 4 bits) in MLX?

The questions and figures of llama2_test.py, through mlx-lm: twenty questions, five times each,
after `pp512` (a prompt of 512 tokens) and `tg128` (128 tokens generated from an empty cache).
Inside the clock: evaluation of the prompt, generation, sampling, turning tokens into text. Outside:
loading, a warm-up generation, tokenizing. Every answer begins with an empty cache, and the sampler
starts from --seed. tokens_per_second: generated tokens over their time, without the prompt's, to
which the first token belongs.
Model: --model, a folder that `mlx_lm.convert` wrote or a name on the Hub; the default one is
downloaded, else a synthetic twin with random weights and the same tensors takes its place.

    python mlx_test_llama2.py --num_questions=1 --num_times_per_question=1
"""

import argparse
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

import harness.data
import harness.machine
import harness.soak
import utils
from harness import PROJECT_VERSION
from harness.arguments import (
    CommandLine,
    device_name,
    machine_name,
    path_name,
    seconds,
    seed,
    temperature,
    whole_number,
)
from harness.awake import stay_awake
from harness.endings import is_out_of_memory
from harness.environment import settle_environment
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
    soaked,
    summarize,
)
from harness.launch import require_script
from harness.process import run_in_fresh_process, value_of
from harness.questions import QUESTIONS
from harness.results import UnreadableResults
from harness.soak import SUSTAINED
from harness.startup import one_line_errors, only_benchmark, require_saving, require_writable
from harness.sweep import save
from harness.twins.gguf import ARCHITECTURES
from harness.twins.mlx_llama import ensure_twin

DEFAULT_MODEL = "mlx-community/Llama-2-7b-chat-hf-4bit"
TWINS = {  # named as the Hub's
    "llama-2-7b": "Llama-2-7b-chat-hf-4bit",
    "tinyllama-1.1b": "TinyLlama-1.1B-Chat-v1.0-4bit",
}
EXPERIMENT = utils.Experiment(
    title="Llama 2 7B, text generation with MLX",
    place=160,
    chart="mlx_lm_llama_2_7b_chat_4bit_tokens_per_second",
    description=__doc__,
    backend="mlx",
    task="generation",
    model=TWINS["llama-2-7b"],
    speeds=SPEEDS,
    model_flags={"max_tokens": 500},
    quick={
        "synthetic_model": "tinyllama-1.1b",
        "num_questions": "1",
        "num_times_per_question": "2",
        "max_tokens": "32",
        "bench_repetitions": "1",
    },
    columns=tuple(COLUMNS),
    text_columns=TEXT_COLUMNS,
    generations=True,
)


def parse_arguments() -> argparse.Namespace:
    parser = CommandLine(__doc__)
    add = parser.add_argument
    add(
        "--model",
        default=DEFAULT_MODEL,
        help="folder, or name on the Hub; default: %(default)s",
    )
    add("--num_questions", type=num_questions, default="all", help="all, or 1 to 20")
    add("--num_times_per_question", type=whole_number, default=5, help="default: %(default)s")
    add("--max_tokens", type=whole_number, default=500, help="default: %(default)s")
    add("--bench_repetitions", type=int, default=5, help="of pp512 and tg128; default: 5")
    add("--max_seconds", type=seconds, help="stop after the row in which they are over")
    harness.soak.add_flag(add)
    add("--stream_output", action="store_true", help="print answers while they are generated")
    add("--device", type=device_name, default="auto", help="auto, cpu, mps, cuda or cuda:N")
    add("--seed", type=seed, default=42, help="of every answer; default: %(default)s")
    add("--temperature", type=temperature, default=0.8, help="default: %(default)s")
    add("--data", choices=["auto", "real", "synthetic"], default="auto",
        help="auto: a synthetic twin when the default model cannot be reached")  # fmt: skip
    add("--data_dir", type=path_name, default=Path("data"), help="default: %(default)s")
    add("--synthetic_model", choices=list(TWINS), default="llama-2-7b",
        help="which model's twin; default: %(default)s")  # fmt: skip
    add("--results_dir", type=path_name, default=Path("results"), help="default: %(default)s")
    add("--machine_name", type=machine_name, help="file the results under this name")
    return parser.parse_args()


# Model


def require_gpu(device: str) -> None:
    """Raises UsageError where `auto` finds the processor only.

    There MLX multiplies some 30 million quantized weights a second (seen with 0.32, on two cores).
    """
    from harness.frameworks import mlx

    if device == "auto" and mlx.choose_device(device).type == "cpu":
        raise utils.UsageError(
            "--device=auto: MLX sees no GPU here, and on the processor a token of a 7B model takes "
            "minutes; measure with llama2_test.py, or give --device=cpu for a small model"
        )


def find_model(options) -> tuple[str, Path]:
    """Name and folder of the model: the given one, one from the Hub, or the synthetic twin.

    Raises:
        UserError: there is none.
    """
    given = options.model != DEFAULT_MODEL
    folder = Path(os.path.expanduser(options.model))
    if given and options.data == "synthetic":
        raise utils.UsageError("--model: --data=synthetic measures a twin instead")
    if given and folder.is_dir():
        return folder.resolve().name, folder
    if given and options.model.count("/") != 1:
        raise utils.UsageError(f"--model={options.model}: neither a folder nor a name on the Hub")

    def fetch():
        patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
        return harness.data.from_hub(options.model, "model", patterns, options.data_dir)

    # What was named is measured, or nothing.
    if harness.data.choose_data("real" if given else options.data, fetch) == "real":
        return options.model.partition("/")[2], fetch()
    name = TWINS[options.synthetic_model]
    text = f"[INST] {' '.join(QUESTIONS)} [/INST]"
    twins = options.data_dir / "synthetic"
    return name, ensure_twin(name, ARCHITECTURES[options.synthetic_model], text, twins)


# Measuring


def measure_all(sender, options) -> list[Path | None]:
    """Load the model and measure the whole plan; a row is saved as soon as it is there.

    Returns:
        The files that the rows are in; None of one that only the terminal has.
    """
    from harness.frameworks import mlx

    device = mlx.choose_device(options.device)
    # Imported after the device is chosen: mlx-lm makes its stream on the default one.
    from harness.frameworks import mlx_lm

    model, tokenizer, config = mlx_lm.load(options.model_path)
    facts = mlx_lm.shared_columns(model, config, device, options)
    facts["project_version"] = PROJECT_VERSION
    asked = QUESTIONS[: options.num_questions]
    prompts = {question: mlx_lm.prompt_tokens(tokenizer, question) for question in asked}
    mlx_lm.require_context(list(prompts.values()), config, options.max_tokens)
    path = results_path(options.results_dir, facts, EXPERIMENT.results_folder)
    try:
        require_saving(path)
    except UnreadableResults as error:
        raise utils.UserError(str(error)) from None
    announce(facts, options)
    facts["thermal_protocol"] = options.thermal_protocol
    if options.thermal_protocol == SUSTAINED:
        facts |= soaked(lambda: mlx_lm.bench_generation(model, tokenizer, config["vocab_size"]))
    sender.send(facts)
    sampled = (options.seed, options.temperature)

    def measure(question: str) -> dict:
        if question == "pp512":
            return mlx_lm.bench_prompt(model, tokenizer, config["vocab_size"])
        if question == "tg128":
            return mlx_lm.bench_generation(model, tokenizer, config["vocab_size"])
        show = print_piece if options.stream_output else None
        prompt = prompts[question]
        return mlx_lm.generate(model, tokenizer, prompt, options.max_tokens, *sampled, show)

    # Keeps out of the rows what the first call costs.
    mlx_lm.generate(model, tokenizer, prompts[asked[0]], min(16, options.max_tokens), *sampled)
    start, files = time.monotonic(), []
    generated = False
    for question, iteration in tqdm(plan(options), desc="mlx-lm", unit=" rows", disable=None):
        row = {**facts, "question": question, "question_iter": iteration, "started_at": now()}
        try:
            row |= {"status": "ok", **measure(question)}
        except (MemoryError, RuntimeError) as error:
            status = "out_of_memory" if is_out_of_memory(error) else "error"
            row |= {"status": status, "error": str(error)}
        files.append(save(path, row, COLUMNS))
        sender.send(row)
        report(row)
        generated |= bool(row.get("tokens_per_second"))  # a prompt alone is no number to keep
        if options.max_seconds and generated and time.monotonic() - start >= options.max_seconds:
            tqdm.write(f"--max_seconds={options.max_seconds:g} are over: the rest is left out")
            break
    return files


def print_piece(text: str) -> None:
    print(text, end="", flush=True)


def main() -> None:
    options = parse_arguments()
    facts, rows = {}, []
    with one_line_errors(rows, options.results_dir), only_benchmark() as alone:
        stay_awake()
        require_script(measure_all)
        options.environment = settle_environment()
        require_writable(options.results_dir)
        value_of(run_in_fresh_process(require_gpu, options.device))
        options.model_name, options.model_path = find_model(options)
        options.other_benchmark_running = not alone
        options.other_load_percent, options.busiest = harness.machine.other_load()
        outcome = run_and_collect(measure_all, options, facts, rows)
        files = outcome.get("value", [])
        if outcome["status"] != "ok":
            rows.append(failed_row(outcome, facts, plan(options)[len(rows)]))
        path = results_path(options.results_dir, facts, EXPERIMENT.results_folder)
        if outcome["status"] != "ok":
            files = [save(path, rows[-1], COLUMNS)]
            report(rows[-1])
        summarize(rows, path)
    sys.exit(any(row["status"] != "ok" for row in rows) or any(file != path for file in files))


if __name__ == "__main__":
    main()
