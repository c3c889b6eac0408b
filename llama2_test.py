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
from collections.abc import Iterator
from pathlib import Path

import harness.cores
import harness.data
import utils
from harness import gguf_file
from harness.arguments import counts, device_name, whole_number, whole_numbers
from harness.frameworks import llama, llama_bench, llama_text
from harness.llm.experiment import LanguageModel, add_flags, failure, settle_flags
from harness.questions import ALL_IN_ONE, figure_parts
from harness.soak import SUSTAINED
from harness.twins.gguf import ARCHITECTURES, ensure_twin

DEFAULT_MODEL = "llama-2-7b-chat.Q4_0.gguf"
HUB_REPOSITORY = "TheBloke/Llama-2-7B-Chat-GGUF"


# Command line


def add_own_flags(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, twins=list(ARCHITECTURES))
    add = parser.add_argument
    add("--model", "--path_to_gguf_model", default=DEFAULT_MODEL,
        help="a GGUF's path, or owner/repo:file.gguf on the Hub; default: %(default)s")  # fmt: skip
    add("--system_prompt", default="", help="goes before every question")
    add("--depths", type=counts, default="0", help="tokens in the cache of pp512 and tg128, "
        'such as "0, 4096"; default: 0')  # fmt: skip
    add("--parallel", type=whole_numbers, default="1", help="so many users at once in pp512 and "
        'tg128, such as "1, 4, 16"; default: 1')  # fmt: skip
    add("--device", type=device_name, default="auto",
        help="auto or cuda: all GPUs; cpu, mps, or cuda:N for one of several cards")  # fmt: skip
    add("--n_gpu_layers", type=int, default=-1, help="layers on the GPU; default: -1, all")
    add("--tensor_split", type=proportions, default="",
        help='each GPU\'s part, such as "3, 1"; default: by their free memory')  # fmt: skip
    add("--n_threads", type=whole_number, help="default: the (performance) cores")
    add("--format", choices=["text", "markdown"], default="text",
        help="of the table in the end; markdown: llama-bench's")  # fmt: skip
    add("--verbose", action="store_true", help="show llama.cpp's own log")


def proportions(text: str) -> str:
    """As the row says it: `3,1`."""
    try:
        return ",".join(map(str, counts(text))) if text else text
    except argparse.ArgumentTypeError:
        form = 'whole numbers separated by commas, such as "3, 1"'
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {form}") from None


def settle_own_flags(options: argparse.Namespace) -> None:
    if ":" in options.device:
        if options.split_mode not in ("layer", "none") or options.tensor_split:
            raise utils.UsageError(f"--device={options.device}: one card shares with none; leave "
                                   "out --split_mode and --tensor_split")  # fmt: skip
        options.split_mode = "none"
    options.n_threads = options.n_threads or harness.cores.performance_cores()
    settle_flags(options)


EXPERIMENT = LanguageModel(
    title="Llama 2 7B, text generation",
    place=150,
    chart="llamacpp_2_7b_chat_q4_0_gguf_tokens_per_second",
    description=__doc__,
    backend="llamacpp",
    task="generation",
    model=DEFAULT_MODEL.removesuffix(".gguf"),
    model_flags={
        "flash_attn": ("auto", "on", "off"),
        "max_tokens": 500,
        "n_gpu_layers": -1,
        "split_mode": tuple(llama.SPLIT_MODES),
        "tensor_split": ("",),
        "n_ctx": 1024,
    },
    add_flags=add_own_flags,
    settle_flags=settle_own_flags,
    folder="results_llama2",
)


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

    def fetch() -> Path:
        return harness.data.from_hub(HUB_REPOSITORY, "model", [DEFAULT_MODEL], options.data_dir)

    if harness.data.choose_data(options.data, fetch) == "real":
        return fetch() / DEFAULT_MODEL
    llama.require_installed("gguf", "gguf")
    model = ARCHITECTURES[options.synthetic_model]
    return ensure_twin(model, ALL_IN_ONE, options.data_dir / "synthetic")


# Measuring

LOADED = []  # by `prepare`, for `measure` in the same process


def prepare(options) -> dict:
    options.model_path = find_model(options)
    llm = llama.load(options)
    facts = llama.facts(llm, options)
    prompts = {
        q: llama_text.prompt_tokens(llm, q, options.system_prompt) for q in options.questions
    }
    llama_text.require_context(list(prompts.values()), options)
    LOADED[:] = llm, prompts
    llama.tell_where(facts, options)
    return facts


def measure(points: list[dict], options) -> Iterator[dict]:
    llm, prompts = LOADED
    soaked = llama_bench.soak(llm, options) if options.thermal_protocol == SUSTAINED else {}
    return (soaked | row for row in rows_of(points, llm, prompts, options))


def rows_of(points: list[dict], llm, prompts: dict, options) -> Iterator[dict]:
    """The row of each point, in contexts as large as each figure, and the questions, need."""
    meter, states = llama.meter_of(llm), {}
    for figure, alike in itertools.groupby(points, lambda each: figure_parts(each["question"])):
        alike = list(alike)
        try:
            if figure:
                yield from llama_bench.rows(llm, alike, states, options, meter)
            else:
                yield from llama_text.rows(llm, alike, prompts, options, meter)
        except (MemoryError, RuntimeError) as error:  # no context: one row stands for all of it
            yield alike[0] | failure(error)


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
