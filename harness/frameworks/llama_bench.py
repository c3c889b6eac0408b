"""llama-bench's figures: a prompt of 512 tokens, and 128 tokens generated one by one.

As tools/llama-bench of github.com/ggml-org/llama.cpp measures them (test_prompt, test_gen): each in
a context of just its size, random tokens, no sampling, the cache emptied before every repetition;
with `-d` so many tokens in the cache, evaluated once and restored. Several sequences in one batch
are those of its tools/batched-bench.
"""

import ctypes
import functools
import random
from collections.abc import Iterator

from harness.bandwidth import gb_per_second
from harness.frameworks.llama import (
    Context,
    Llm,
    batch_of,
    decode,
    forget,
    gb_per_step,
    open_context,
    parts_of,
    peak_memory_gb,
)
from harness.llm.experiment import attempt, soaked
from harness.questions import GENERATION, PP_TOKENS, PROMPT, TG_TOKENS, figure_parts
from harness.stopwatch import stopwatch, watched_columns


def context_size(figure: str) -> tuple[int, int]:
    """Tokens of every sequence, and sequences, of the context that a figure is measured in."""
    test, depth, parallel = figure_parts(figure)
    return depth + (PP_TOKENS if test == PROMPT else TG_TOKENS), parallel


def rows(llm: Llm, points: list[dict], states: dict, options, meter) -> Iterator[dict]:
    """A row for every repetition of one figure.

    Raises:
        MemoryError: there is no room for the context.
        RuntimeError: llama.cpp refuses it for another reason.
    """
    figure = points[0]["question"]
    with open_context(llm, options, *context_size(figure)) as context:
        prepare(context, figure, states)
        for point in points:
            yield attempt(point, functools.partial(measure, context, figure, states, meter))


def soak(llm: Llm, options) -> dict:
    """Columns of what is measured once generating has become steady."""
    with open_context(llm, options, *context_size(GENERATION)) as context:
        prepare(context, GENERATION, {})
        return soaked(functools.partial(measure, context, GENERATION, {}))


def prepare(context: Context, figure: str, states: dict) -> None:
    """Warm up, and put into `states` the tokens that a figure at depth finds in the cache.

    Args:
        states: by depth, the newest only; those of an earlier context are used again.
    """
    test, depth, parallel = figure_parts(figure)
    forget(context)
    evaluate(context, steps_of(context, test, 0, parallel)[:1])
    if depth and depth not in states:
        states.clear()
        states[depth] = prefilled(context, depth)


def prefilled(context: Context, depth: int):
    """The state of a sequence of `depth` random tokens."""
    import llama_cpp

    forget(context)
    evaluate(context, [[batch_of(part) for part in parts_of(context, tokens_of(context, depth))]])
    size = llama_cpp.llama_state_seq_get_size(context.handle, 0)
    state = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(context.handle, state, size, 0)
    return state


def measure(context: Context, figure: str, states: dict, meter=None) -> dict:
    """One repetition of a figure such as `tg128` or `pp512@d4096`: columns of its row.

    Args:
        states: what `prepare` filled.
        meter: a `harness.energy.EnergyMeter` of the device, or None.

    Raises:
        MemoryError: there was no room for it.
        RuntimeError: llama.cpp failed for another reason.
    """
    test, depth, parallel = figure_parts(figure)
    forget(context)
    if depth:
        restore(context, states[depth])
    steps = steps_of(context, test, depth, parallel)
    with stopwatch(meter) as watch:
        evaluate(context, steps)
    tokens = parallel * (PP_TOKENS if test == PROMPT else TG_TOKENS)
    speed = tokens / watch["total_time"]
    row = {
        **watched_columns(watch, tokens),
        **context.columns,
        "depth": depth,
        "parallel": parallel,
        "peak_memory_gb": peak_memory_gb(context),
    }
    if test == PROMPT:
        first = {"time_to_first_token": watch["total_time"]} if parallel > 1 else {}
        return row | first | {"prompt_token_len": tokens, "prompt_tokens_per_second": speed}
    read = gb_per_step(context, depth + TG_TOKENS / 2, parallel)
    return row | {
        "answer_token_len": tokens,
        "tokens_per_second": speed,
        "tokens_per_second_each": speed / parallel if parallel > 1 else None,
        "bandwidth_gb_per_second": gb_per_second(read, speed / parallel),
    }


def restore(context: Context, state) -> None:
    """Raises RuntimeError unless the state fits the context."""
    import llama_cpp

    if not llama_cpp.llama_state_seq_set_data(context.handle, state, len(state), 0):
        raise RuntimeError("llama.cpp cannot restore the tokens in the cache")
    llama_cpp.llama_synchronize(context.handle)


def steps_of(context: Context, test: str, depth: int, parallel: int) -> list[list]:
    """The batches of a figure in steps: the device is waited for at the end of each step."""
    if test == PROMPT:
        sequences = [tokens_of(context, PP_TOKENS) for _ in range(parallel)]
        placed = [
            (token, depth + place, number, place == PP_TOKENS - 1)
            for number, tokens in enumerate(sequences)
            for place, token in enumerate(tokens)
        ]
        return [[placed_batch(part) for part in parts_of(context, placed)]]
    sequences = [tokens_of(context, TG_TOKENS) for _ in range(parallel)]
    return [
        [placed_batch([(token, depth + place, number, True) for number, token in enumerate(turn)])]
        for place, turn in enumerate(zip(*sequences, strict=True))
    ]


def tokens_of(context: Context, count: int) -> list[int]:
    """So many random tokens, after a beginning of sequence where the model wants one."""
    import llama_cpp

    vocabulary = context.llm.vocabulary
    tokens = random.choices(range(llama_cpp.llama_vocab_n_tokens(vocabulary)), k=count)
    if llama_cpp.llama_vocab_get_add_bos(vocabulary):
        tokens[0] = llama_cpp.llama_vocab_bos(vocabulary)
    return tokens


def placed_batch(placed: list[tuple[int, int, int, bool]]):
    """A batch of (token, position, sequence, whether its logits are wanted)."""
    import llama_cpp

    tokens, positions, sequences, wanted = zip(*placed, strict=True)
    count = len(placed)
    of_token = [(llama_cpp.llama_seq_id * 1)(sequence) for sequence in sequences]
    pointer = ctypes.POINTER(llama_cpp.llama_seq_id)
    return llama_cpp.llama_batch(
        n_tokens=count,
        token=(llama_cpp.llama_token * count)(*tokens),
        pos=(llama_cpp.llama_pos * count)(*positions),
        n_seq_id=(ctypes.c_int32 * count)(*[1] * count),
        seq_id=(pointer * count)(*[ctypes.cast(each, pointer) for each in of_token]),
        logits=(ctypes.c_int8 * count)(*wanted),
    )


def evaluate(context: Context, steps: list[list]) -> None:
    import llama_cpp

    for batches in steps:
        for batch in batches:
            decode(context, batch)
        llama_cpp.llama_synchronize(context.handle)
