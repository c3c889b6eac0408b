"""What the LLM protocol costs, and whether random weights are as fast as others: two ratios.

Loop: the script's timed generation against a bare loop over llama.cpp's C functions, with the same
model, prompt, sampler and number of tokens. Shuffle: a model against its copy whose blocks of
weights are shuffled within every matrix. Both interleaved, with a small synthetic model; the one to
be shuffled gets normally distributed weights, quantized as real ones are.
"""

import argparse
import contextlib
import shutil
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from harness.frameworks import llama, llama_bench, llama_text
from harness.questions import SAMPLING
from harness.twins.gguf import Architecture, tensors, write_twin
from selfchecks.pairs import interleaved_ratios

SMALL = Architecture("small.Q4_0", 4, 2048, 5632, 16, 16, 32000, 2048, rms_epsilon=1e-6)
QUESTION = "How does a kettle know that the water boils? Explain it step by step."
TOKENS = 32
SEED, TEMPERATURE = 42, 0.8


@contextlib.contextmanager
def loaded(path: Path):
    """A context of the model at `path`."""
    # One thread: several wait for each other whenever another program runs, which is mere noise.
    options = argparse.Namespace(
        model_path=path,
        device="auto",
        n_gpu_layers=-1,
        n_threads=1,
        flash_attn="auto",
        verbose=False,
        split_mode="layer",
        tensor_split="",
    )
    with llama.open_context(llama.load(options), options, n_ctx=1024) as context:
        yield context


@contextlib.contextmanager
def small_model():
    """A small synthetic GGUF."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{SMALL.name}.gguf"
        write_twin(path, SMALL, QUESTION)
        yield path


def fill_with_normal_weights(path: Path) -> None:
    """Put normally distributed weights into its Q4_0 matrices, quantized as real ones are."""
    random = np.random.default_rng(1)
    shapes = {name: shape for name, shape, _ in tensors(SMALL)}
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0:
            rows, columns = shapes[tensor.name]
            weights = random.standard_normal((rows, columns), np.float32) / columns**0.5
            tensor.data[:] = gguf.quantize(weights, tensor.tensor_type)


def shuffled_copy(path: Path, folder: Path) -> Path:
    """A copy of a GGUF whose blocks of weights are in random order within every matrix."""
    copy = folder / "shuffled.gguf"
    shutil.copyfile(path, copy)
    random = np.random.default_rng(2)
    for tensor in gguf.GGUFReader(copy, "r+").tensors:
        if len(tensor.shape) > 1:
            _, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
            blocks = tensor.data.view(np.uint8).reshape(-1, block_bytes)
            blocks[:] = blocks[random.permutation(len(blocks))]
    return copy


def bare_generation(context, prompt: list[int]) -> None:
    """Answer `prompt` with llama.cpp's C functions and llama-cpp-python's chain of samplers."""
    vocabulary_size = llama_cpp.llama_vocab_n_tokens(context.llm.vocabulary)
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in (
        llama_cpp.llama_sampler_init_penalties(vocabulary_size, 64, 1.0, 0.0, 0.0),
        llama_cpp.llama_sampler_init_top_k(SAMPLING["top_k"]),
        llama_cpp.llama_sampler_init_typical(1.0, 1),
        llama_cpp.llama_sampler_init_top_p(SAMPLING["top_p"], 1),
        llama_cpp.llama_sampler_init_min_p(SAMPLING["min_p"], 1),
        llama_cpp.llama_sampler_init_temp(TEMPERATURE),
        llama_cpp.llama_sampler_init_dist(SEED),
    ):
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context.handle), True)
    tokens = prompt
    for _ in range(TOKENS):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)  # the batch only points to it
        batch = llama_cpp.llama_batch_get_one(array, len(array))
        assert llama_cpp.llama_decode(context.handle, batch) == 0
        tokens = [llama_cpp.llama_sampler_sample(chain, context.handle, -1)]
    llama_cpp.llama_sampler_free(chain)


def loop_ratios(pairs: int) -> list[float]:
    """Of interleaved pairs, seconds of the bare loop divided by the script's own."""
    with small_model() as path, loaded(path) as context:
        prompt = llama_text.prompt_tokens(context.llm, QUESTION)
        return interleaved_ratios(
            lambda: llama_text.generate(context, prompt, TOKENS, SEED, TEMPERATURE),
            lambda: bare_generation(context, prompt),
            pairs,
        )


def shuffle_ratios(pairs: int) -> list[float]:
    """Of interleaved pairs, seconds of the shuffled copy divided by those of the model."""
    with small_model() as path:
        fill_with_normal_weights(path)
        copy = shuffled_copy(path, path.parent)
        with loaded(path) as original, loaded(copy) as shuffled:
            # The same tokens for both, whatever they would answer.
            return interleaved_ratios(
                lambda: llama_bench.measure(original, "tg128", {}),
                lambda: llama_bench.measure(shuffled, "tg128", {}),
                pairs,
            )
