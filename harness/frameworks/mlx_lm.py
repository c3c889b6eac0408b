"""The one mlx-lm protocol: loading, a timed generation, pp512 and tg128.

All of it goes through `stream_generate`, which `mlx_lm.benchmark` measures too: it keeps the device
one token ahead and waits only for the token that it yields.
"""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx

from harness.device import Device
from harness.process import UsageError, UserError
from harness.questions import (
    LLAMA2_PROMPT,
    PP_TOKENS,
    SAMPLING,
    TG_TOKENS,
    in_chat_format,
)
from harness.twins.mlx_llama import SYNTHETIC_KEY


def load(path: Path):
    """Model, tokenizer and config of a folder in the form that `mlx_lm.convert` writes.

    Raises:
        UserError: mlx-lm cannot load it.
    """
    import mlx_lm

    try:
        return mlx_lm.load(str(path), return_config=True)
    except (FileNotFoundError, ValueError, KeyError) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: mlx-lm {mlx_lm.__version__} cannot load it: {problem}") from None


def shared_columns(model, config: dict, device: Device, options) -> dict:
    """The columns that every row shares, beside those of the flags that change what is measured."""
    import mlx_lm
    from mlx_lm.utils import get_total_parameters

    quantization = config.get("quantization")
    files = options.model_path.glob("*.safetensors")
    return {
        "seed": options.seed,
        "temperature": options.temperature,
        "questions_file": options.questions_file and options.questions_file.name,
        **device.columns(f"mlx-lm {mlx_lm.__version__}, mlx {mx.__version__}"),
        "model": options.model_name,
        "data": "synthetic" if SYNTHETIC_KEY in config else "real",
        "architecture": config["model_type"],
        "parameters": get_total_parameters(model),
        "quantization": quantization
        and f"{quantization['bits']} bits, groups of {quantization['group_size']}",
        "file_size_gb": sum(file.stat().st_size for file in files) / 1e9,
        "layers": len(model.layers),
        "layers_on_gpu": 0 if device.type == "cpu" else len(model.layers),
    }


def prompt_tokens(tokenizer, question: str) -> list[int]:
    """The question in the model's own chat format; in Llama 2's where it has none.

    Raises:
        UserError: the template refuses such a conversation, is broken, or leaves out the question.
    """
    if not tokenizer.has_chat_template:
        return tokenizer.encode(LLAMA2_PROMPT.format(question))

    def render(messages: list[dict]) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    text = in_chat_format(render, tokenizer.name_or_path, question)
    return tokenizer.encode(text, add_special_tokens=False)


def require_context(prompts: list[list[int]], config: dict, max_tokens: int) -> None:
    """Raises UsageError unless every prompt and its answer fit into the model's context."""
    context = config.get("max_position_embeddings")
    needed = max(map(len, prompts)) + max_tokens
    if context and needed > context:
        raise UsageError(
            f"--max_tokens={max_tokens}: prompt and answer take up to {needed} tokens, and the "
            f"model's context is {context}"
        )


# One generation


def generate(
    model,
    tokenizer,
    prompt: list[int],
    max_tokens: int,
    seed: int,
    temperature: float,
    show: Callable[[str], None] | None = None,
) -> dict:
    """Answer one prompt; returns the measured columns of its row.

    Inside the clock: evaluation of the prompt, generation, sampling, turning tokens into text, and
    `show` if there is one. The first token belongs to the prompt's time, the others to generation.

    Args:
        seed: the sampler starts from it every time, so that repetitions give the same answer.
        show: gets the text of every token.
    """
    from mlx_lm.sample_utils import make_sampler

    mx.random.seed(seed)
    sampler = make_sampler(temperature, **SAMPLING)
    pieces, times = [], []
    start = time.perf_counter()
    for response in responses(model, tokenizer, prompt, max_tokens, sampler):
        times.append(time.perf_counter() - start)
        pieces.append(response.text)
        if show:
            show(response.text)
    text = "".join(pieces)
    # The end of the sequence is generated, but is not one of the answer's tokens.
    length = response.generation_tokens - (response.finish_reason == "stop")
    first, total = times[0], times[-1]
    return {
        "total_time": total,
        "answer": text,
        "answer_char_len": len(text),
        "chars_per_second": len(text) / total,
        "answer_token_len": length,
        "tokens_per_second": rate(response.generation_tokens - 1, total - first),
        "prompt_token_len": len(prompt),
        "prompt_tokens_per_second": len(prompt) / first,
        "time_to_first_token": first,
    }


def responses(model, tokenizer, prompt: list[int], max_tokens: int, sampler=None) -> Iterator:
    """What mlx-lm yields token by token; without a sampler the likeliest one."""
    from mlx_lm import stream_generate
    from mlx_lm.generate import generation_stream

    # It has begun one token more than it yields; that must not run into the next measurement.
    yield from stream_generate(model, tokenizer, prompt, max_tokens=max_tokens, sampler=sampler)
    mx.synchronize(generation_stream)


def rate(count: int, seconds: float) -> float | None:
    return count / seconds if count else None


# llama-bench's figures (tools/llama-bench of github.com/ggml-org/llama.cpp: test_prompt, test_gen)


def bench_prompt(model, tokenizer, vocabulary: int, count: int = PP_TOKENS) -> dict:
    """Evaluate `count` random tokens in an empty cache: columns of a row."""
    prompt = random_tokens(vocabulary, count)
    first, *_ = timed(model, tokenizer, prompt, 1)
    return {
        "total_time": first,
        "prompt_token_len": count,
        "prompt_tokens_per_second": count / first,
    }


def bench_generation(model, tokenizer, vocabulary: int, count: int = TG_TOKENS) -> dict:
    """Generate `count` tokens after the first one from an empty cache: columns of a row.

    A real model may end its sequence earlier; then there are fewer.
    """
    first, *later = timed(model, tokenizer, random_tokens(vocabulary, 1), count + 1)
    seconds = later[-1] - first
    return {
        "total_time": seconds,
        "answer_token_len": len(later),
        "tokens_per_second": len(later) / seconds,
    }


def timed(model, tokenizer, prompt: list[int], max_tokens: int) -> list[float]:
    """Seconds from the start until each token is there."""
    start = time.perf_counter()
    return [time.perf_counter() - start for _ in responses(model, tokenizer, prompt, max_tokens)]


def random_tokens(vocabulary: int, count: int) -> list[int]:
    return random.choices(range(vocabulary), k=count)
