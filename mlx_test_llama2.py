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
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import harness.data
import utils
from harness.llm.experiment import (
    LanguageModel,
    add_flags,
    attempt,
    print_piece,
    settle_flags,
    soaked,
)
from harness.questions import ALL_IN_ONE, GENERATION, PROMPT, WARM_UP_TOKENS
from harness.soak import SUSTAINED
from harness.twins.gguf import ARCHITECTURES
from harness.twins.mlx_llama import ensure_twin

DEFAULT_MODEL = "mlx-community/Llama-2-7b-chat-hf-4bit"
TWINS = {  # named as the Hub's
    "llama-2-7b": "Llama-2-7b-chat-hf-4bit",
    "tinyllama-1.1b": "TinyLlama-1.1B-Chat-v1.0-4bit",
}


def add_own_flags(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, twins=list(TWINS))
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="folder, or name on the Hub; default: %(default)s"
    )


EXPERIMENT = LanguageModel(
    title="Llama 2 7B, text generation with MLX",
    place=160,
    chart="mlx_lm_llama_2_7b_chat_4bit_tokens_per_second",
    description=__doc__,
    backend="mlx",
    task="generation",
    model=TWINS["llama-2-7b"],
    model_flags={"max_tokens": 500},
    add_flags=add_own_flags,
    settle_flags=settle_flags,
)


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

    def fetch() -> Path:
        patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
        return harness.data.from_hub(options.model, "model", patterns, options.data_dir)

    # What was named is measured, or nothing.
    if harness.data.choose_data("real" if given else options.data, fetch) == "real":
        return options.model.partition("/")[2], fetch()
    name, twins = TWINS[options.synthetic_model], options.data_dir / "synthetic"
    return name, ensure_twin(name, ARCHITECTURES[options.synthetic_model], ALL_IN_ONE, twins)


# Measuring

LOADED = []  # by `prepare`, for `measure` in the same process


def prepare(options) -> dict:
    require_gpu(options.device)
    options.model_name, options.model_path = find_model(options)
    from harness.frameworks import mlx

    device = mlx.choose_device(options.device)
    # Imported after the device is chosen: mlx-lm makes its stream on the default one.
    from harness.frameworks import mlx_lm

    model, tokenizer, config = mlx_lm.load(options.model_path)
    prompts = {q: mlx_lm.prompt_tokens(tokenizer, q) for q in options.questions}
    mlx_lm.require_context(list(prompts.values()), config, options.max_tokens)
    LOADED[:] = model, tokenizer, config["vocab_size"], prompts
    return mlx_lm.shared_columns(model, config, device, options)


def measure(points: list[dict], options) -> Iterator[dict]:
    from harness.frameworks import mlx_lm

    model, tokenizer, vocabulary, prompts = LOADED
    figures = {PROMPT: mlx_lm.bench_prompt, GENERATION: mlx_lm.bench_generation}
    show = print_piece if options.stream_output else None
    sampled = options.seed, options.temperature

    def ask(question: str, max_tokens: int = options.max_tokens, show=show) -> dict:
        if question in figures:
            return figures[question](model, tokenizer, vocabulary)
        return mlx_lm.generate(model, tokenizer, prompts[question], max_tokens, *sampled, show)

    sustained = options.thermal_protocol == SUSTAINED
    columns = soaked(functools.partial(ask, GENERATION)) if sustained else {}
    # Keeps out of the rows what the first call costs.
    ask(options.questions[0], min(WARM_UP_TOKENS, options.max_tokens), show=None)
    rows = (attempt(point, functools.partial(ask, point["question"])) for point in points)
    return (columns | row for row in rows)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
