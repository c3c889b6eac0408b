"""A timed answer of a model in llama.cpp, from the question's tokens to its last one.

llama.cpp counts itself what it evaluates: tokens and milliseconds of prompts and of generation,
read from `llama_perf_context`. The wall clock around a generation checks these counters.
"""

import contextlib
import ctypes
import functools
import time
from collections.abc import Callable, Iterator

from harness.bandwidth import gb_per_second
from harness.frameworks.llama import (
    Context,
    Llm,
    batch_of,
    decode,
    decoded,
    forget,
    gb_per_step,
    has_random_weights,
    metadata,
    open_context,
    parts_of,
    peak_memory_gb,
)
from harness.llm.experiment import attempt, print_piece
from harness.process import UsageError, UserError
from harness.questions import LLAMA2_PROMPT, SAMPLING, WARM_UP_TOKENS, in_chat_format
from harness.stopwatch import stopwatch, watched_columns
from harness.windows import last_over_first

LLAMA2_SYSTEM = "<<SYS>>\n{}\n<</SYS>>\n\n{}"


# Tokens


def prompt_tokens(llm: Llm, question: str, system_prompt: str = "") -> list[int]:
    """The question in the model's own chat format; in Llama 2's where the file has none.

    The files of Llama 2 are older than chat templates in GGUF.

    Raises:
        UserError: the template refuses such a conversation, is broken, or leaves out what is said;
            or the vocabulary makes no tokens of it.
    """
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = metadata(llm, "tokenizer.chat_template")
    if template is None:
        asked = LLAMA2_SYSTEM.format(system_prompt, question) if system_prompt else question
        return tokenize(llm, LLAMA2_PROMPT.format(asked), add_special=True)
    special = {f"{name}_token": special_token(llm, name) for name in ("bos", "eos")}

    def render(messages: list[dict]) -> str:
        return Jinja2ChatFormatter(template, **special)(messages=messages).prompt

    prompt = in_chat_format(render, llm.path, question, system_prompt)
    return tokenize(llm, prompt, add_special=False)


def special_token(llm: Llm, name: str) -> str:
    """The text of the vocabulary's `bos` or `eos`; empty where it has none."""
    import llama_cpp

    token = getattr(llama_cpp, f"llama_vocab_{name}")(llm.vocabulary)
    if token < 0:
        return ""
    return decoded(llama_cpp.llama_vocab_get_text(llm.vocabulary, token), llm.path, f"{name} token")


def tokenize(llm: Llm, text: str, add_special: bool) -> list[int]:
    """The tokens of `text`, in which special ones may be written out.

    Args:
        add_special: whether a beginning of sequence goes first, if the model wants one.

    Raises:
        UserError: the vocabulary makes no tokens of it.
    """
    import llama_cpp

    data = text.encode()
    # No token is shorter than a byte; beginning, end, and a space before it may be added.
    tokens = (llama_cpp.llama_token * (len(data) + 3))()
    count = llama_cpp.llama_tokenize(
        llm.vocabulary, data, len(data), tokens, len(tokens), add_special, True
    )
    if count <= 0:
        raise UserError(f"{llm.path}: its vocabulary makes no tokens of the prompt")
    return tokens[:count]


def piece(llm: Llm, token: int) -> bytes:
    """The text of a token, which may end in the middle of a character; a special one's is empty."""
    import llama_cpp

    text = ctypes.create_string_buffer(256)
    size = llama_cpp.llama_token_to_piece(llm.vocabulary, token, text, len(text), 0, False)
    return text.raw[: max(size, 0)]


def require_context(prompts: list[list[int]], options) -> None:
    """Raises UsageError unless every prompt and its answer fit into the context."""
    needed = max(map(len, prompts)) + options.max_tokens
    if needed > options.n_ctx:
        raise UsageError(f"--n_ctx={options.n_ctx}: prompt and answer take up to {needed} tokens")


# One answer


@contextlib.contextmanager
def new_sampler(seed: int, temperature: float) -> Iterator[int]:
    """llama.cpp's own sampling of a token; the likeliest one at temperature 0."""
    import llama_cpp

    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if temperature == 0:
        steps = [llama_cpp.llama_sampler_init_greedy()]
    else:
        steps = [
            llama_cpp.llama_sampler_init_top_k(SAMPLING["top_k"]),
            llama_cpp.llama_sampler_init_top_p(SAMPLING["top_p"], 1),
            llama_cpp.llama_sampler_init_min_p(SAMPLING["min_p"], 1),
            llama_cpp.llama_sampler_init_temp(temperature),
            llama_cpp.llama_sampler_init_dist(seed),
        ]
    for step in steps:
        llama_cpp.llama_sampler_chain_add(chain, step)
    try:
        yield chain
    finally:
        llama_cpp.llama_sampler_free(chain)


def rows(
    llm: Llm, points: list[dict], prompts: dict[str, list[int]], options, meter
) -> Iterator[dict]:
    """A row for every answer, after a short one that is not counted.

    Raises:
        MemoryError: there is no room for the context.
        RuntimeError: llama.cpp refuses it for another reason.
    """
    speeds = []
    show = print_piece if options.stream_output else None
    sampling = options.seed, options.temperature
    with open_context(llm, options, options.n_ctx) as context:
        first = prompts[points[0]["question"]]
        generate(context, first, min(WARM_UP_TOKENS, options.max_tokens), *sampling)
        for point in points:
            question = point["question"]
            if show:
                show(f"\n\n{question}\n")
            asked = context, prompts[question], options.max_tokens, *sampling, meter, show
            row = attempt(point, functools.partial(generate, *asked))
            if row.get("tokens_per_second"):
                speeds.append(row["tokens_per_second"])
            yield row | {"sustained_ratio": last_over_first(speeds, sum)}


def generate(
    context: Context,
    tokens: list[int],
    max_tokens: int,
    seed: int,
    temperature: float,
    meter=None,
    show: Callable[[str], None] | None = None,
) -> dict:
    """Answer one prompt; returns the measured columns of its row.

    Random weights end the sequence anywhere, so a twin's answer goes on until `max_tokens`.

    Inside the clock: evaluation of the prompt, generation, sampling, and `show` if there is one.
    The prompt's tokens and those after the first generated one are timed by llama.cpp's counters.

    Args:
        seed: the sampler starts from it every time, so that repetitions give the same answer.
        meter: a `harness.energy.EnergyMeter` of the device, or None.
        show: gets the text of every token.

    Raises:
        RuntimeError: llama.cpp failed, or did not evaluate every token.
        MemoryError: there was no room for it.
    """
    import llama_cpp

    answer, first = [], None
    ends = not has_random_weights(context.llm)
    forget(context)
    with new_sampler(seed, temperature) as sampler, stopwatch(meter) as watch:
        start = time.perf_counter()
        for token in continuation(context, tokens, sampler, ends):
            first = first or time.perf_counter() - start
            answer.append(token)
            if show:
                show(piece(context.llm, token).decode(errors="ignore"))
            if len(answer) == max_tokens:
                break
    counted = llama_cpp.llama_perf_context(context.handle)
    # One by one were evaluated the tokens but for the last, on which nothing follows; the end of
    # the sequence is not one of the answer's. Counters that are 0 read 1.
    one_by_one = max(len(answer) - (len(answer) == max_tokens), 1)
    if (counted.n_p_eval, counted.n_eval) != (len(tokens), one_by_one):
        raise RuntimeError(
            f"llama.cpp evaluated {counted.n_p_eval} tokens of the prompt and {counted.n_eval} of "
            f"the answer, not {len(tokens)} and {one_by_one}"
        )
    text = b"".join(piece(context.llm, token) for token in answer).decode(errors="replace")
    speed = per_second(counted.n_eval, counted.t_eval_ms)
    total = watch["total_time"]
    inside = (counted.t_p_eval_ms + counted.t_eval_ms) / 1000
    return {
        **watched_columns(watch, len(answer)),
        **context.columns,
        "answer": text,
        "answer_char_len": len(text),
        "chars_per_second": len(text) / total,
        "answer_token_len": len(answer),
        "tokens_per_second": speed,
        "prompt_token_len": len(tokens),
        "prompt_tokens_per_second": per_second(counted.n_p_eval, counted.t_p_eval_ms),
        "time_to_first_token": first,
        "outside_model_percent": 100 * (1 - inside / total),
        "bandwidth_gb_per_second": gb_per_second(
            gb_per_step(context, len(tokens) + len(answer) / 2), speed
        ),
        "peak_memory_gb": peak_memory_gb(context),
    }


def continuation(context: Context, tokens: list[int], sampler: int, ends: bool) -> Iterator[int]:
    """Evaluate `tokens`, and yield one sampled after another, each evaluated when asked for more.

    Args:
        ends: whether the model may end the sequence.
    """
    import llama_cpp

    for part in parts_of(context, tokens):
        decode(context, batch_of(part))
    while True:
        token = llama_cpp.llama_sampler_sample(sampler, context.handle, -1)
        if ends and llama_cpp.llama_vocab_is_eog(context.llm.vocabulary, token):
            return
        yield token
        decode(context, batch_of([token]))


def per_second(count: int, milliseconds: float) -> float | None:
    return 1000 * count / milliseconds if milliseconds else None
