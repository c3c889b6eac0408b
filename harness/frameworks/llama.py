"""The one llama.cpp protocol: loading, proof of the device, a timed generation, pp512 and tg128.

llama.cpp counts itself what it evaluates: tokens and milliseconds of prompts and of generation,
read from `llama_perf_context`. The wall clock around a generation checks these counters.
"""

import ctypes
import importlib.util
import platform
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

import harness.cores
import harness.machine
from harness.process import UsageError, UserError
from harness.twins.gguf import SYNTHETIC_KEY

SHARED_OPTIONS = (
    "max_tokens",
    "n_gpu_layers",
    "flash_attn",
    "seed",
    "temperature",
    "other_load_percent",
    "other_benchmark_running",
)
LLAMA2_PROMPT = "[INST] {} [/INST]"
PP_TOKENS = 512  # llama-bench's standard prompt, evaluated as one batch
TG_TOKENS = 128  # and its standard generation


class Offload(NamedTuple):
    """Where llama.cpp put the layers of a model, in its own words."""

    layers_on_gpu: int
    layers: int | None  # None where it says nothing, as a build without GPU does
    device_type: str  # `cpu`, `metal`, or the backend's name in small letters, such as `cuda`
    gpu_name: str | None
    gpu_bytes: int | None


# Loading


def require_installed(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{package} is not installed: python -m pip install {package}")


def require_gguf(path: Path) -> None:
    """Raises UserError unless the file starts as a GGUF does."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if magic != b"GGUF":
        raise UserError(f"{path} is not a GGUF file: it starts with {magic!r}")


def load(options):
    """The model, and all that llama.cpp logged meanwhile.

    Raises:
        UserError: llama.cpp cannot load it; its own reason is in the message.
    """
    import llama_cpp

    log = capture_log(options.verbose)
    gpu = options.n_gpu_layers != 0 and llama_cpp.llama_supports_gpu_offload()
    if not gpu or platform.system() == "Darwin":
        require_memory(options.model_path, psutil.virtual_memory())
    try:
        llm = llama_cpp.Llama(
            str(options.model_path),
            n_ctx=options.n_ctx,
            n_gpu_layers=options.n_gpu_layers,
            n_threads=options.n_threads,
            n_threads_batch=options.n_threads,
            flash_attn=options.flash_attn,
            # Without layers on the GPU nothing at all may be computed there.
            op_offload=gpu,
            offload_kqv=gpu,
            verbose=options.verbose,
        )
    except ValueError as error:
        reason = reason_of_failure("".join(log)) or error
        raise UserError(
            f"{options.model_path}: llama.cpp {llama_cpp.__version__} cannot load it: {reason}"
        ) from None
    return llm, "".join(log)


def capture_log(verbose: bool) -> list[str]:
    """The list that llama.cpp's log goes to, and with `verbose` the terminal too."""
    import llama_cpp

    lines = []
    debug = 1  # GGML_LOG_LEVEL_DEBUG of ggml.h

    @llama_cpp.llama_log_callback
    def keep(level, text, _):
        if level != debug:
            lines.append(text.decode(errors="replace"))
            if verbose:
                print(lines[-1], end="", file=sys.stderr)

    capture_log.callback = keep  # llama.cpp calls it as long as the process lives
    llama_cpp.llama_log_set(keep, None)
    return lines


def reason_of_failure(log: str) -> str | None:
    """Why llama.cpp could not load a model: the first error in its log that names a cause."""
    found = re.search(r"error loading model: (.+)|(failed to (?:allocate|create|init).+)", log)
    return found and (found[1] or found[2])


def require_memory(path: Path, memory) -> None:
    """Raises UserError where the model is larger than the machine's memory, `psutil`'s `memory`.

    One that only takes more than is free still runs, as the system makes room; that is said.
    """
    needed = path.stat().st_size
    takes = f"the model takes {needed / 1e9:.1f} GB"
    if needed > memory.total:
        raise UserError(
            f"{path}: too little memory: {takes}, and this machine has {memory.total / 1e9:.1f} GB"
        )
    if needed > memory.available:
        free = f"{memory.available / 1e9:.1f} GB are free"
        print(f"Note: {takes}, and {free}: close other programs, or it may swap")


def default_threads() -> int:
    """The fast cores that this process may use."""
    return harness.cores.performance_cores()


# What and where


def shared_columns(llm, log: str, options) -> dict:
    """The columns that every row shares."""
    facts = {
        **{name: getattr(options, name) for name in SHARED_OPTIONS},
        **machine_columns(parse_offload(log)),
        **model_columns(llm, options.model_path),
    }
    facts["machine"] = options.machine_name or facts["machine"]
    return facts


def parse_offload(log: str) -> Offload:
    """Read llama.cpp's report on loading a model."""
    offloaded = re.search(r"offloaded (\d+)/(\d+) layers to GPU", log)
    on_gpu, layers = (int(offloaded[1]), int(offloaded[2])) if offloaded else (0, None)
    devices = re.findall(r"using device ([A-Za-z]+)\d* \((.+?)\) \(", log)
    if not on_gpu or not devices:
        return Offload(0, layers, "cpu", None, None)
    backend, name = devices[0]
    kind = {"mtl": "metal"}.get(backend.lower(), backend.lower())
    memory = re.search(rf"Device \d+: {re.escape(name)}, .*VRAM: (\d+) MiB", log)
    # llama.cpp spreads the layers over all of them.
    counts = Counter(name for _, name in devices)
    name = " + ".join(f"{count}x {one}" if count > 1 else one for one, count in counts.items())
    if len(counts) > 1:
        memory = None
    return Offload(on_gpu, layers, kind, name, int(memory[1]) * 2**20 if memory else None)


def machine_columns(offload: Offload) -> dict:
    """The machine columns of a row, of the device that llama.cpp computes on."""
    import llama_cpp

    machine = harness.machine.machine_facts()
    if offload.device_type == "cpu":
        tag = harness.machine.machine_tag(machine, "cpu", None, None)
    elif offload.device_type == "metal":
        tag = harness.machine.machine_tag(machine, "mps", None, None)
    else:
        tag = harness.machine.machine_tag(machine, "cuda", offload.gpu_name, offload.gpu_bytes)
    name = offload.gpu_name
    return {
        **machine,
        "device": f"{offload.device_type} ({name})" if name else offload.device_type,
        "machine": tag,
        "framework": f"llama-cpp-python {llama_cpp.__version__}",
        "layers_on_gpu": offload.layers_on_gpu,
        "layers": offload.layers,
    }


def model_columns(llm, path: Path) -> dict:
    """What llama.cpp says of a model; a twin is known by its metadata."""
    import llama_cpp

    description = ctypes.create_string_buffer(256)
    llama_cpp.llama_model_desc(llm.model, description, len(description))
    described = description.value.decode().split(maxsplit=2)  # such as "llama 7B Q4_0"
    return {
        "model": model_tag(path),
        "data": "synthetic" if SYNTHETIC_KEY in llm.metadata else "real",
        "architecture": llm.metadata.get("general.architecture"),
        "parameters": llama_cpp.llama_model_n_params(llm.model),
        "quantization": described[2] if len(described) == 3 else None,
        "file_size_gb": path.stat().st_size / 1e9,
        "n_ctx": llm.n_ctx(),
        "n_threads": llm.n_threads,
    }


def model_tag(path: Path) -> str:
    """The model's part of a results file's name."""
    return safe_name(path.stem)


def safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_")


# One generation


def prompt_tokens(llm, question: str) -> list[int]:
    """The question in the model's own chat format; in Llama 2's where the file has none.

    The files of Llama 2 are older than chat templates in GGUF.
    """
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = llm.metadata.get("tokenizer.chat_template")
    if template is None:
        return llm.tokenize(LLAMA2_PROMPT.format(question).encode(), special=True)
    formatter = Jinja2ChatFormatter(
        template=template,
        bos_token=token_text(llm, llm.token_bos()),
        eos_token=token_text(llm, llm.token_eos()),
    )
    prompt = formatter(messages=[{"role": "user", "content": question}]).prompt
    return llm.tokenize(prompt.encode(), add_bos=False, special=True)


def token_text(llm, token: int) -> str:
    """The text of a special token; empty where the vocabulary has no such token (-1)."""
    import llama_cpp

    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    return llama_cpp.llama_vocab_get_text(vocabulary, token).decode() if token >= 0 else ""


def forget(llm) -> None:
    """Empty the KV cache, so that no part of the next prompt counts as known; zero the counters."""
    import llama_cpp

    llm.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
    llama_cpp.llama_perf_context_reset(llm.ctx)


def generate(
    llm,
    tokens: list[int],
    max_tokens: int,
    seed: int,
    temperature: float,
    show: Callable[[str], None] | None = None,
) -> dict:
    """Answer one prompt; returns the measured columns of its row.

    Random weights end the sequence anywhere, so a twin's answer goes on until `max_tokens`.

    Inside the clock: evaluation of the prompt, generation, sampling, and `show` if there is one.
    The prompt's tokens and those after the first generated one are timed by llama.cpp's counters.

    Args:
        seed: the sampler starts from it every time, so that repetitions give the same answer.
        show: gets the text of every token.

    Raises:
        RuntimeError: llama.cpp failed, or did not evaluate every token.
    """
    import llama_cpp

    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    random_weights = SYNTHETIC_KEY in llm.metadata
    answer = []
    first = None
    llm.set_seed(seed)
    forget(llm)
    start = time.perf_counter()
    for token in llm.generate(tokens, temp=temperature):
        first = first or time.perf_counter() - start
        if not random_weights and llama_cpp.llama_vocab_is_eog(vocabulary, token):
            break
        answer.append(token)
        if show:
            show(llm.detokenize([token]).decode(errors="ignore"))
        if len(answer) == max_tokens:
            break
    total = time.perf_counter() - start
    counted = llama_cpp.llama_perf_context(llm.ctx)
    # One by one were evaluated the tokens but for the last, on which nothing follows; the end of
    # the sequence is not one of the answer's. Counters that are 0 read 1.
    one_by_one = max(len(answer) - (len(answer) == max_tokens), 1)
    if (counted.n_p_eval, counted.n_eval) != (len(tokens), one_by_one):
        raise RuntimeError(
            f"llama.cpp evaluated {counted.n_p_eval} tokens of the prompt and {counted.n_eval} of "
            f"the answer, not {len(tokens)} and {one_by_one}"
        )
    text = llm.detokenize(answer).decode(errors="replace")
    inside = (counted.t_p_eval_ms + counted.t_eval_ms) / 1000
    return {
        "total_time": total,
        "answer": text,
        "answer_char_len": len(text),
        "chars_per_second": len(text) / total,
        "answer_token_len": len(answer),
        "tokens_per_second": per_second(counted.n_eval, counted.t_eval_ms),
        "prompt_token_len": len(tokens),
        "prompt_tokens_per_second": per_second(counted.n_p_eval, counted.t_p_eval_ms),
        "time_to_first_token": first,
        "outside_model_percent": 100 * (1 - inside / total),
    }


def per_second(count: int, milliseconds: float) -> float | None:
    return 1000 * count / milliseconds if milliseconds else None


def require_context(prompts: list[list[int]], options) -> None:
    """Raises UsageError unless every prompt and its answer fit into the context."""
    needed = max(map(len, prompts)) + options.max_tokens
    if options.bench_repetitions:
        needed = max(needed, PP_TOKENS)
    if needed > options.n_ctx:
        raise UsageError(f"--n_ctx={options.n_ctx}: prompt and answer take up to {needed} tokens")


# llama-bench's figures (tools/llama-bench of github.com/ggml-org/llama.cpp: test_prompt, test_gen)


def bench_prompt(llm, count: int = PP_TOKENS) -> dict:
    """Evaluate `count` random tokens as one batch in an empty cache: columns of a row."""
    seconds = timed_decode(llm, [random_tokens(llm, count)])
    return {
        "total_time": seconds,
        "prompt_token_len": count,
        "prompt_tokens_per_second": count / seconds,
    }


def bench_generation(llm, count: int = TG_TOKENS) -> dict:
    """Evaluate `count` random tokens one by one from an empty cache: columns of a row."""
    seconds = timed_decode(llm, [[token] for token in random_tokens(llm, count)])
    return {
        "total_time": seconds,
        "answer_token_len": count,
        "tokens_per_second": count / seconds,
    }


def random_tokens(llm, count: int) -> list[int]:
    return [llm.token_bos()] + random.choices(range(llm.n_vocab()), k=count - 1)


def timed_decode(llm, batches: list[list[int]]) -> float:
    """Seconds to evaluate the batches from an empty cache, without sampling.

    Raises:
        RuntimeError: llama.cpp failed.
    """
    import llama_cpp

    forget(llm)
    start = time.perf_counter()
    for batch in batches:
        tokens = (llama_cpp.llama_token * len(batch))(*batch)
        code = llama_cpp.llama_decode(llm.ctx, llama_cpp.llama_batch_get_one(tokens, len(batch)))
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        llama_cpp.llama_synchronize(llm.ctx)
    return time.perf_counter() - start
