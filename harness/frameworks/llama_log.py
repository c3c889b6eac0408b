"""What llama.cpp says in its log: device, flash attention, memory, bytes per token, failures.

Nothing of this is in llama.cpp's C interface. The texts are those of llama.cpp as llama-cpp-python
0.3.36 builds it: src/llama.cpp, src/llama-context.cpp, src/llama-kv-cache.cpp and
src/llama-model-loader.cpp (its list of tensors, which LLAMA_TRACE=1 asks for).
"""

import re
from typing import NamedTuple

MIB = 2**20
DEVICE_TYPES = {"mtl": "metal"}
LOOKED_UP = ("per_layer_token_embd.weight", "position_embd.weight")  # a row per token is read
OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|insufficient memory|failed to (?:allocate|reserve)|unable to allocate"
    r"|memory allocation failed",
    re.IGNORECASE,
)


class Offload(NamedTuple):
    """Where llama.cpp put the layers of a model, in its own words."""

    layers_on_gpu: int
    layers: int | None  # None where it says nothing, as a build without GPU does
    device_type: str  # `cpu`, `metal`, or the backend's name in small letters, such as `cuda`
    gpu_name: str | None  # `2x NAME`, or `NAME + NAME` where it spreads them over unlike cards
    gpu_bytes: int | None  # of one card; None for unlike ones
    gpu_index: int | None  # the backend's own number of it; None where there are several


class KVCache(NamedTuple):
    """One of a context's caches of keys and values; models with sliding windows have two."""

    bytes_per_token: float
    tokens: int  # that it has room for, of one sequence


def parse_offload(log: str) -> Offload:
    """Read llama.cpp's report on loading a model."""
    offloaded = re.search(r"offloaded (\d+)/(\d+) layers to GPU", log)
    on_gpu, layers = (int(offloaded[1]), int(offloaded[2])) if offloaded else (0, None)
    devices = re.findall(r"using device ([A-Za-z]+)(\d*) \((.+)\) \([^()]*\) - ", log)
    if not on_gpu or not devices:
        return Offload(0, layers, "cpu", None, None, None)
    backend, index, name = devices[0]
    names = [name for _, _, name in devices]
    memory = re.search(rf"Device \d+: {re.escape(name)}, .*VRAM: (\d+) MiB", log)
    return Offload(
        on_gpu,
        layers,
        DEVICE_TYPES.get(backend.lower(), backend.lower()),
        joined_name(names),
        int(memory[1]) * MIB if memory and len(set(names)) == 1 else None,
        int(index or 0) if len(names) == 1 else None,
    )


def joined_name(names: list[str]) -> str:
    """Of the cards that share a model, such as `2x NVIDIA L4` or `NVIDIA L4 + NVIDIA T4`."""
    counted = {name: names.count(name) for name in names}
    return " + ".join(f"{count}x {name}" if count > 1 else name for name, count in counted.items())


def flash_attention(log: str) -> str | None:
    """`on` or `off`: what the newest context in the log computes with; None where it is silent."""
    asked = re.findall(r"flash_attn += (\w+)", log)
    if not asked:
        return None
    if asked[-1] != "auto":
        return "on" if asked[-1] == "enabled" else "off"
    _, _, since = log.rpartition("flash_attn ")
    decided = re.search(r"Flash Attention (?:was auto, set to )?(enabled|disabled|not)", since)
    return decided and ("on" if decided[1] == "enabled" else "off")


def buffers(log: str, kind: str, on_gpu: bool) -> float:
    """Bytes of all buffers of a kind (`model`, `KV`, `compute`, ...), on the GPU or beside it."""
    found = re.findall(rf"(\S+) +{kind} buffer size = +([\d.]+) MiB", log)
    return MIB * sum(float(size) for name, size in found if on_gpu != of_host(name))


def of_host(buffer: str) -> bool:
    """Whether a buffer of this name lies in the processor's memory, such as `CUDA_Host`."""
    return buffer.startswith("CPU") or buffer.endswith("_Host")


def kv_caches(log: str) -> list[KVCache]:
    """The caches of a context, from the log of its making."""
    size = r"size = +([\d.]+) MiB \( *(\d+) cells, +\d+ layers, +\d+/(\d+) seqs\)"
    return [
        KVCache(float(total) * MIB / int(cells) / int(streams), int(cells))
        for total, cells, streams in re.findall(size, log)
    ]


def weights_per_token(log: str, total: int, experts: int, experts_used: int) -> float:
    """Bytes of weights that have to be read to generate one token.

    All but tables of which one row is read, and of experts those that a token is sent to.

    Args:
        log: with the list of tensors.
        total: bytes of all tensors.
        experts: of a layer, and how many of them a token is sent to; 0 without experts.
    """
    listed = re.findall(r"tensor split +\d+: +(\S+) +\S+ +\[.*?\] +([\d.]+) MiB", log)
    sizes = {name: float(size) * MIB for name, size in listed}
    # Without an output of its own a model multiplies with the whole table of its tokens.
    looked_up = (*LOOKED_UP, "token_embd.weight") if "output.weight" in sizes else LOOKED_UP
    idle = sum(sizes.get(name, 0) for name in looked_up)
    if experts:
        of_experts = sum(size for name, size in sizes.items() if "_exps." in name)
        idle += of_experts * (1 - experts_used / experts)
    return total - idle


def reason_of_failure(log: str) -> str | None:
    """Why llama.cpp could not do what was asked of it: the first cause that its log names."""
    found = re.search(
        r"error loading model: (.+)|(failed to (?:allocate|create|init|reserve).+)|^error: (.+)"
        r"|(invalid value for main_gpu.+)",
        log,
        re.MULTILINE,
    )
    return found and next(filter(None, found.groups()))
