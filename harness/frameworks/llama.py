"""A model in llama.cpp: loading it, contexts to compute in, proof of the device, memory.

Used is the C interface as llama-cpp-python binds it, because its class `Llama` knows no automatic
flash attention and no second context.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

import harness.cores
import harness.machine
from harness import gguf_file
from harness.device import Device
from harness.energy import EnergyMeter, energy_meter
from harness.frameworks import llama_log
from harness.nvidia import has_card
from harness.process import UsageError, UserError
from harness.system import text_of
from harness.twins.gguf import SYNTHETIC_KEY

SHARED_OPTIONS = ("n_threads", "seed", "temperature", "system_prompt")
# How several GPUs share a model, as llama.cpp numbers it (LLAMA_SPLIT_MODE_... of llama.h).
SPLIT_MODES = {"layer": 1, "none": 0, "row": 2, "tensor": 3}
DEVICE_NAMES = {"mps": "metal"}  # of --device, as llama.cpp's log has them
LOG: list[str] = []  # all that llama.cpp says in this process


class Llm(NamedTuple):
    """A loaded model."""

    model: int  # llama.cpp's pointers
    vocabulary: int
    log: str  # what llama.cpp said while it loaded it
    path: Path


class Context(NamedTuple):
    """What a model computes in: its KV cache and buffers."""

    llm: Llm
    handle: int
    columns: dict  # of every row that is made in it
    caches: list[llama_log.KVCache]


# Loading


def require_installed(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{package} is not installed: python -m pip install {package}")


def computes_on_gpu(options) -> bool:
    import llama_cpp

    wanted = options.device != "cpu" and options.n_gpu_layers != 0
    return wanted and llama_cpp.llama_supports_gpu_offload()


def load(options) -> Llm:
    """The model of `options.model_path`.

    Raises:
        UserError: llama.cpp cannot load it (its own reason is in the message), not on the device
            asked for, or it generates no text.
    """
    import llama_cpp

    # Before any other call: whichever is the first one has the cards and their memory listed.
    capture_log(options.verbose)
    said = len(LOG)
    if not computes_on_gpu(options) or platform.system() == "Darwin":
        free = psutil.virtual_memory().available
        gguf_file.require_memory(options.model_path, harness.cores.usable_memory(), free)
    os.environ["LLAMA_TRACE"] = "1"  # its log lists the tensors
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    # Rows keep what was asked: on the processor they are those of a build that knows no GPU.
    parameters.n_gpu_layers = 0 if options.device == "cpu" else options.n_gpu_layers
    parameters.split_mode = SPLIT_MODES[options.split_mode]
    parameters.main_gpu = Device.parse(options.device).index  # for the mode `none`
    parts = [float(part) for part in options.tensor_split.split(",") if part]
    if len(parts) > (most := llama_cpp.llama_max_devices()):
        raise UsageError(f"--tensor_split={options.tensor_split}: at most {most} parts")
    if parts:
        parameters.tensor_split = (ctypes.c_float * most)(*parts)  # 0 for those not named
    model = llama_cpp.llama_model_load_from_file(str(options.model_path).encode(), parameters)
    log = "".join(LOG[said:])
    if not model:
        reason = llama_log.reason_of_failure(log)
        raise UserError(
            f"{options.model_path}: llama.cpp {llama_cpp.__version__} cannot load it: {reason}"
        )
    require_device(options.device, llama_log.parse_offload(log).device_type)
    llm = Llm(model, llama_cpp.llama_model_get_vocab(model), log, options.model_path)
    require_generator(llm)
    return llm


def capture_log(verbose: bool) -> None:
    """Have llama.cpp's log go to `LOG`, and with `verbose` to the terminal too."""
    import llama_cpp

    debug = 1  # GGML_LOG_LEVEL_DEBUG of ggml.h

    @llama_cpp.llama_log_callback
    def keep(level, text, _):
        if level != debug:
            LOG.append(text.decode(errors="replace"))
            if verbose:
                print(LOG[-1], end="", file=sys.stderr)

    llama_cpp.llama_log_set(keep, None)
    capture_log.callback = keep  # llama.cpp calls it as long as the process lives


def require_device(asked: str, used: str) -> None:
    """Raises UsageError unless llama.cpp computes on the kind of device that was asked for."""
    kind = Device.parse(asked).type
    if kind != "auto" and DEVICE_NAMES.get(kind, kind) != used:
        raise UsageError(
            f"--device={asked}: llama.cpp computes on {used} here; docs/setup.md says how to "
            "install llama-cpp-python with Metal or CUDA"
        )


def require_generator(llm: Llm) -> None:
    """Raises UserError where the model embeds text, or encodes it, and does not continue it."""
    import llama_cpp

    architecture = metadata(llm, "general.architecture")
    embeds = (
        metadata(llm, f"{architecture}.attention.causal") == "false"
        or metadata(llm, f"{architecture}.pooling_type") is not None
    )
    if embeds or llama_cpp.llama_model_has_encoder(llm.model):
        kind = "an embedding model" if embeds else "an encoder and a decoder"
        raise UserError(
            f"{llm.path} ({architecture}) is {kind}: measured are models that go on a text"
        )


def metadata(llm: Llm, key: str) -> str | None:
    """A value of the GGUF's metadata; None where it has no such key.

    Raises:
        UserError: it is no text.
    """
    import llama_cpp

    length = llama_cpp.llama_model_meta_val_str(llm.model, key.encode(), None, 0)
    if length < 0:
        return None
    value = ctypes.create_string_buffer(length + 1)
    llama_cpp.llama_model_meta_val_str(llm.model, key.encode(), value, len(value))
    return decoded(value.value, llm.path, key)


def decoded(text: bytes, path: Path, name: str) -> str:
    """What a model's file has under `name`; raises UserError where that is no text."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: its {name} is no UTF-8 text ({error.reason})") from None


@contextlib.contextmanager
def open_context(llm: Llm, options, n_ctx: int, sequences: int = 1) -> Iterator[Context]:
    """A context of `n_ctx` tokens for every sequence, freed in the end; set up as llama-bench does.

    Raises:
        MemoryError: there is no room for it.
        RuntimeError: llama.cpp refuses it for another reason.
    """
    import llama_cpp

    gpu = computes_on_gpu(options)
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = n_ctx * sequences
    parameters.n_seq_max = sequences
    parameters.n_threads = parameters.n_threads_batch = options.n_threads
    parameters.flash_attn_type = {
        "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
        "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }[options.flash_attn]
    parameters.swa_full = False
    parameters.no_perf = False
    # Without layers on the GPU nothing at all may be computed there.
    parameters.op_offload = parameters.offload_kqv = gpu
    said = len(LOG)
    handle = llama_cpp.llama_init_from_model(llm.model, parameters)
    log = "".join(LOG[said:])
    if not handle:
        raise failure("llama.cpp cannot make a context", log)
    try:
        yield Context(llm, handle, context_columns(llm, log), llama_log.kv_caches(log))
    finally:
        llama_cpp.llama_free(handle)


def failure(what: str, log: str) -> Exception:
    """The error to raise for what llama.cpp could not do, with the reason that its log gives."""
    reason = llama_log.reason_of_failure(log)
    kind = MemoryError if llama_log.OUT_OF_MEMORY.search(log) else RuntimeError
    return kind(f"{what}: {reason}" if reason else what)


# What and where


def facts(llm: Llm, options) -> dict:
    """The columns that every row shares, beside those of the flags that change what is measured."""
    return {
        **{name: getattr(options, name) for name in SHARED_OPTIONS},
        "questions_file": options.questions_file and options.questions_file.name,
        **machine_columns(llama_log.parse_offload(llm.log)),
        "weights_on_gpu_gb": llama_log.buffers(llm.log, "model", on_gpu=True) / 1e9,
        **model_columns(llm, options.model_path),
    }


def tell_where(facts: dict, options) -> None:
    """Print where the weights are, and that a GPU goes unused for want of another build."""
    if facts["layers"]:
        gigabytes = f"{facts['weights_on_gpu_gb']:.2f} of {facts['weights_gb']:.2f} GB"
        print(f"{facts['layers_on_gpu']} of {facts['layers']} layers on the GPU ({gigabytes})")
    apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    wanted = options.device == "auto" and options.n_gpu_layers
    if facts["device"] == "cpu" and wanted and (apple or has_card()):
        print(
            "Note: this build of llama-cpp-python computes on the CPU, although there is a GPU; "
            "see the README for how to install it with Metal or CUDA"
        )


def machine_columns(offload: llama_log.Offload) -> dict:
    """The machine columns of a row, of the device that llama.cpp computes on."""
    name, size = offload.gpu_name, offload.gpu_bytes
    device = Device(offload.device_type, offload.gpu_index or 0, name, size)
    layers = {"layers_on_gpu": offload.layers_on_gpu, "layers": offload.layers}
    return device.columns(build()) | layers


def build(maps: Path = Path("/proc/self/maps")) -> str:
    """Such as `llama-cpp-python 0.3.36`, with the CUDA runtime that this process has loaded.

    Args:
        maps: which files are mapped into the process, as Linux lists them.
    """
    import llama_cpp

    name = f"llama-cpp-python {llama_cpp.__version__}"
    runtimes = sorted(set(re.findall(r"/libcudart\.so\.([\d.]+)$", text_of(maps), re.MULTILINE)))
    return f"{name}, CUDA {' and '.join(runtimes)}" if runtimes else name


def meter_of(llm: Llm) -> EnergyMeter | None:
    """An energy meter of the device that the model computes on; None where nothing tells."""
    offload = llama_log.parse_offload(llm.log)
    if offload.device_type == "cuda" and offload.gpu_index is not None:
        return energy_meter("cuda", offload.gpu_index)
    kind = {"cpu": "cpu", "metal": "mps"}.get(offload.device_type)
    return kind and energy_meter(kind)


def model_columns(llm: Llm, path: Path) -> dict:
    """What llama.cpp says of a model; a twin is known by its metadata."""
    import llama_cpp

    description = ctypes.create_string_buffer(256)
    llama_cpp.llama_model_desc(llm.model, description, len(description))
    described = description.value.decode()  # such as "llama 7B Q4_0"
    return {
        "model": gguf_file.model_tag(path),
        "data": "synthetic" if has_random_weights(llm) else "real",
        "architecture": metadata(llm, "general.architecture"),
        "description": described,
        "parameters": llama_cpp.llama_model_n_params(llm.model),
        "quantization": (described.split(maxsplit=2) + [None] * 3)[2],
        "file_size_gb": gguf_file.size(path) / 1e9,
        "weights_gb": llama_cpp.llama_model_size(llm.model) / 1e9,
    }


def context_columns(llm: Llm, log: str) -> dict:
    """What the log of a context's making says of it."""
    on_gpu = llama_log.parse_offload(llm.log).device_type != "cpu"
    in_cache = sum(llama_log.buffers(log, kind, on_gpu) for kind in ("KV", "RS"))
    computing = sum(llama_log.buffers(log, kind, on_gpu) for kind in ("compute", "output"))
    return {
        "flash_attn_used": llama_log.flash_attention(log),
        "kv_cache_gb": in_cache / 1e9,
        "compute_buffers_gb": computing / 1e9,
    }


def peak_memory_gb(context: Context) -> float:
    """Of the GPU what llama.cpp allocated there; without one, the peak of this process."""
    log = context.llm.log
    if llama_log.parse_offload(log).device_type == "cpu":
        return harness.machine.peak_resident_gb()
    allocated = context.columns["kv_cache_gb"] + context.columns["compute_buffers_gb"]
    return llama_log.buffers(log, "model", on_gpu=True) / 1e9 + allocated


def gb_per_step(context: Context, depth: float, sequences: int = 1) -> float | None:
    """GB that must be read to generate one token of each sequence, with `depth` in its cache.

    None for several sequences of a mixture of experts: which experts they share is not known.
    """
    import llama_cpp

    llm = context.llm
    architecture = metadata(llm, "general.architecture")
    experts = int(metadata(llm, f"{architecture}.expert_count") or 0)
    if experts and sequences > 1:
        return None
    weights = llama_log.weights_per_token(
        llm.log,
        llama_cpp.llama_model_size(llm.model),
        experts,
        int(metadata(llm, f"{architecture}.expert_used_count") or 0),
    )
    cached = sum(cache.bytes_per_token * min(depth, cache.tokens) for cache in context.caches)
    return (weights + sequences * cached) / 1e9


def has_random_weights(llm: Llm) -> bool:
    return metadata(llm, SYNTHETIC_KEY) is not None


# Evaluating tokens


def forget(context: Context) -> None:
    """Empty the KV cache, so that no part of the next prompt counts as known; zero the counters."""
    import llama_cpp

    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context.handle), True)
    llama_cpp.llama_synchronize(context.handle)
    llama_cpp.llama_perf_context_reset(context.handle)


def decode(context: Context, batch) -> None:
    """Have a batch evaluated; the results need not be there yet.

    Raises:
        MemoryError: there was no room for it.
        RuntimeError: llama.cpp failed for another reason.
    """
    import llama_cpp

    said = len(LOG)
    code = llama_cpp.llama_decode(context.handle, batch)
    if code:
        raise failure(f"llama_decode returned {code}", "".join(LOG[said:]))


def batch_of(tokens: list[int]):
    """The tokens that follow on those in the cache of the first sequence; the last one's logits."""
    import llama_cpp

    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    return llama_cpp.llama_batch(n_tokens=len(tokens), token=array)


def parts_of(context: Context, items: list) -> list[list]:
    """Such as a context takes in one batch."""
    import llama_cpp

    size = llama_cpp.llama_n_batch(context.handle)
    return [items[start : start + size] for start in range(0, len(items), size)]
