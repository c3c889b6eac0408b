"""What the MLX protocol costs: ratios of two things measured in one run, interleaved.

Loop: the shared training loop with its clock, against a bare one as mlx-examples has it, which
evaluates the whole state after every step. Generation: the LLM script's timed answer, against the
loop that `mlx_lm.benchmark` times, with a small synthetic model and the same prompt.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from harness.clock import Clock
from harness.frameworks import mlx
from harness.models.small_transformer_mlx import SmallTransformer
from harness.twins.gguf import Architecture
from harness.twins.mlx_llama import write_twin
from selfchecks.pairs import interleaved_ratios

LENGTH, WORDS = 32, 1000
SMALL_LLAMA = Architecture("small", 2, 128, 256, 4, 4, 700, 2048, rms_epsilon=1e-5)
OPTIONS = argparse.Namespace(device="auto", seed=1, precision="fp32", compile=True)


def small_model() -> SmallTransformer:
    """So small that what a step costs beside computing weighs more than in a benchmark."""
    return SmallTransformer(LENGTH, WORDS, 32, 4, 32, 1, dropout_rate=0.1)


def loss_function(model, tokens, labels):
    return mlx.cross_entropy(model(tokens), labels)


def random_batches(batch_size: int, steps: int):
    """One epoch of full batches of random token ids and labels."""
    tokens = mx.random.randint(0, WORDS, (batch_size * steps, LENGTH))
    labels = mx.random.randint(0, 2, (batch_size * steps,))
    return mlx.in_memory_batches(tokens, labels, batch_size)


def adam() -> optim.Adam:
    return optim.Adam(learning_rate=1e-3, bias_correction=True)


def bare_step():
    """A compiled step, and the state that it changes."""
    model, optimizer = small_model(), adam()
    mx.eval(model.parameters())
    state = [model.state, optimizer.state, mx.random.state]
    loss_and_gradients = nn.value_and_grad(model, loss_function)

    @partial(mx.compile, inputs=state, outputs=state)
    def step(tokens, labels):
        loss, gradients = loss_and_gradients(model, tokens, labels)
        optimizer.update(model, gradients)
        return loss

    return step, state


def shared_epoch(batch_size: int, steps: int, batches):
    """A function that trains an epoch with the script's own loop."""
    device = mlx.Device("cpu")
    training = mlx.Training(small_model(), loss_function, adam(), batches, device, OPTIONS)

    def epoch():
        training.run(Clock(batch_size, batch_size * steps, 1, training.synchronize))

    return epoch


def loop_ratios(batch_size: int = 8, steps: int = 10, pairs: int = 30) -> list[float]:
    """Of interleaved pairs, the bare loop's seconds divided by the script's own."""
    mlx.start(OPTIONS)
    batches = random_batches(batch_size, steps)
    step, state = bare_step()

    def bare():
        for tokens, labels in batches():
            step(tokens, labels)
            mx.eval(state)

    return interleaved_ratios(shared_epoch(batch_size, steps, batches), bare, pairs)


def generation_ratios(pairs: int = 30, prompt: int = 8, tokens: int = 8) -> list[float]:
    """Of interleaved pairs, seconds of mlx-lm's benchmark loop divided by the script's own."""
    mlx.start(OPTIONS)
    from mlx_lm import stream_generate
    from mlx_lm.generate import generation_stream

    from harness.frameworks import mlx_lm

    with tempfile.TemporaryDirectory() as folder:
        write_twin(path := Path(folder) / "small", SMALL_LLAMA, "How does it work?")
        model, tokenizer, config = mlx_lm.load(path)
    asked = mlx_lm.random_tokens(config["vocab_size"], prompt)

    def bare():
        for _ in stream_generate(model, tokenizer, asked, max_tokens=tokens):
            pass
        # The token more that it has begun is ours to wait for too, outside of the script's clock.
        mx.synchronize(generation_stream)

    def ours():
        # At temperature 0 the likeliest token is chosen, as the benchmark does.
        mlx_lm.generate(model, tokenizer, asked, tokens, seed=1, temperature=0.0)

    return interleaved_ratios(ours, bare, pairs)
