"""Writes a GGUF of random weights that costs a machine the same work as a real language model.

How fast a model generates depends on the shapes and types of its tensors, not on their values. The
twins have the tensors of files that people run: Llama 2 7B in Q4_0 (3.56 GiB), a dense model with
grouped-query attention and a mixture of experts in Q4_K_M. Which expert a token is sent to is
random too, as in a real one. The vocabulary is made up, with tokens for the words of a given text,
so that this text takes about as many tokens as with the real one.

Block layouts: block_q4_0, block_q4_K and block_q6_K in ggml/src/ggml-common.h of
github.com/ggml-org/llama.cpp; which tensor gets which type: src/llama-quant.cpp there.
"""

import itertools
import math
import re
import shutil
import string
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from tqdm import tqdm

from harness.process import UserError

SYNTHETIC_KEY = "speed_test.synthetic"  # metadata that only a twin has
SPACE = "\u2581"  # how SentencePiece writes a space


class Architecture(NamedTuple):
    """A model as the metadata of its GGUF describe it. `name` is the file's, without its end."""

    name: str
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rms_epsilon: float
    kind: str = "llama"  # what llama.cpp calls the architecture
    file_type: str = "MOSTLY_Q4_0"  # of gguf.LlamaFileType
    rope_base: float = 10000.0
    rope_factors: bool = False  # Llama 3.1 has a table of them
    head_size: int = 0  # 0: embedding / heads
    experts: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0

    @property
    def head(self) -> int:
        return self.head_size or self.embedding // self.heads


# Of the models' config.json: meta-llama/Llama-2-7b-chat-hf, TinyLlama/TinyLlama-1.1B-Chat-v1.0,
# meta-llama/Llama-3.1-8B-Instruct, Qwen/Qwen3-30B-A3B.
ARCHITECTURES = {
    "llama-2-7b": Architecture(
        "llama-2-7b-chat.Q4_0", 32, 4096, 11008, 32, 32, 32000, 4096, rms_epsilon=1e-6
    ),
    "tinyllama-1.1b": Architecture(
        "tinyllama-1.1b-chat-v1.0.Q4_0", 22, 2048, 5632, 32, 4, 32000, 2048, rms_epsilon=1e-5
    ),
    "llama-3.1-8b": Architecture(
        "llama-3.1-8b-instruct.Q4_K_M", 32, 4096, 14336, 32, 8, 128256, 131072, rms_epsilon=1e-5,
        file_type="MOSTLY_Q4_K_M", rope_base=500000.0, rope_factors=True,
    ),
    "qwen3-30b-a3b": Architecture(
        "qwen3-30b-a3b.Q4_K_M", 48, 2048, 6144, 32, 4, 151936, 40960, rms_epsilon=1e-6,
        kind="qwen3moe", file_type="MOSTLY_Q4_K_M", rope_base=1000000.0, head_size=128,
        experts=128, experts_used=8, expert_feed_forward=768,
    ),
}  # fmt: skip


def ensure_twin(model: Architecture, text: str, folder: Path) -> Path:
    """The twin of `model` in `folder`, written if it is not there yet.

    Raises:
        UserError: the disk has no room, or refuses the file.
    """
    path = folder / f"{model.name}.gguf"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two runs at once write it once.
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                require_room(folder, weights_size(model))
                write_twin(path, model, text)
    except OSError as error:
        raise UserError(f"--data_dir: {path} cannot be written ({error.strerror})") from None
    return path


def require_room(folder: Path, size: int, margin: int = 10**9) -> None:
    """Raises UserError unless the disk of `folder` has `size` bytes free and a margin."""
    free = shutil.disk_usage(folder).free
    if free < size + margin:
        raise UserError(
            f"--data_dir: the synthetic model takes {size / 1e9:.1f} GB, and the disk of {folder} "
            f"has {free / 1e9:.1f} GB free, of which {margin / 1e9:.0f} GB are left alone"
        )


def write_twin(path: Path, model: Architecture, text: str, seed: int = 0) -> None:
    """Write the twin of `model`, whose vocabulary has the words of `text`, to `path`."""
    import gguf
    import numpy as np

    temporary = path.with_suffix(".part")
    random = np.random.default_rng(seed)
    try:
        writer = gguf.GGUFWriter(temporary, model.kind)
        add_metadata(writer, model, text)
        for name, shape, kind in tensors(model):
            writer.add_tensor_info(name, shape, np.float32, size_in_bytes(shape, kind), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        shown = dict(desc=f"writing {path.name}", unit="B", unit_scale=True, disable=None)
        with tqdm(total=weights_size(model), **shown) as progress:
            for _, shape, kind in tensors(model):
                writer.write_tensor_data(random_tensor(shape, kind, random))
                progress.update(size_in_bytes(shape, kind))
        writer.close()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def tensors(model: Architecture) -> list[tuple[str, tuple[int, ...], int]]:
    """Name, shape (rows, columns; experts first) and type of every tensor, in the file's order."""
    return [
        (f"{name}.weight", shape, type_of(name, shape, model))
        for name, shape in [
            ("token_embd", (model.vocabulary, model.embedding)),
            *([("rope_freqs", (model.head // 2,))] if model.rope_factors else []),
            *(
                (f"blk.{number}.{name}", shape)
                for number in range(model.layers)
                for name, shape in layer(model)
            ),
            ("output_norm", (model.embedding,)),
            ("output", (model.vocabulary, model.embedding)),
        ]
    ]


def layer(model: Architecture) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a layer."""
    width, queries, keys = model.embedding, model.heads * model.head, model.kv_heads * model.head
    attention = [
        ("attn_norm", (width,)),
        ("attn_q", (queries, width)),
        ("attn_k", (keys, width)),
        ("attn_v", (keys, width)),
        ("attn_output", (width, queries)),
        ("ffn_norm", (width,)),
    ]
    if not model.experts:
        return [
            *attention,
            ("ffn_gate", (model.feed_forward, width)),
            ("ffn_up", (model.feed_forward, width)),
            ("ffn_down", (width, model.feed_forward)),
        ]
    hidden = model.expert_feed_forward
    return [
        *attention,
        ("attn_q_norm", (model.head,)),
        ("attn_k_norm", (model.head,)),
        ("ffn_gate_inp", (model.experts, width)),
        ("ffn_gate_exps", (model.experts, hidden, width)),
        ("ffn_up_exps", (model.experts, hidden, width)),
        ("ffn_down_exps", (model.experts, width, hidden)),
    ]


def type_of(name: str, shape: tuple[int, ...], model: Architecture) -> int:
    """The type that llama.cpp's quantizer gives a tensor (llama_tensor_get_type there)."""
    from gguf import GGMLQuantizationType as Type

    if len(shape) == 1 or name.endswith("ffn_gate_inp"):
        return Type.F32
    if name == "output":
        return Type.Q6_K
    if model.file_type == "MOSTLY_Q4_0":
        return Type.Q4_0
    wants_more = re.fullmatch(r"blk\.(\d+)\.(?:attn_v|ffn_down|ffn_down_exps)", name)
    if wants_more and gets_more_bits(int(wants_more[1]), model.layers):
        return Type.Q6_K
    return Type.Q4_K


def gets_more_bits(number: int, layers: int) -> bool:
    """Whether Q4_K_M spends six bits on sensitive tensors of this layer (use_more_bits there)."""
    eighth = layers // 8
    return number < eighth or number >= 7 * layers // 8 or (number - eighth) % 3 == 2


def size_in_bytes(shape: tuple[int, ...], kind: int) -> int:
    """What a tensor takes in the file."""
    from gguf import GGML_QUANT_SIZES

    block, block_bytes = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * block_bytes


def weights_size(model: Architecture) -> int:
    """Bytes of all tensors; header and padding come on top (less than 2 MB)."""
    return sum(size_in_bytes(shape, kind) for _, shape, kind in tensors(model))


def random_tensor(shape: tuple[int, ...], kind: int, random):
    """A random tensor whose product with a vector of unit variance has about unit variance."""
    import numpy as np
    from gguf import GGMLQuantizationType as Type

    if len(shape) == 1:
        return np.ones(shape, np.float32)
    deviation = 1 / math.sqrt(shape[-1])
    if kind == Type.F32:
        return random.standard_normal(shape, np.float32) * np.float32(deviation)
    if kind == Type.Q4_0:
        # A weight is scale * (n - 8) with n from 0 to 15, whose mean square is 21.5.
        blocks = np.empty(math.prod(shape) // 32, [("scale", "<f2"), ("weights", "u1", 16)])
        # Of either sign, as in real files; and the mean of n - 8, which is not 0, cancels out.
        signs = 1 - 2 * random.integers(2, size=len(blocks), dtype=np.int8)
        blocks["scale"] = signs * np.float16(deviation / math.sqrt(21.5))
        blocks["weights"] = random_bytes(random, len(blocks), 16)
        return blocks
    if kind == Type.Q4_K:
        # A weight is scale * s * n - low * m; n is from 0 to 15, s and m from 0 to 63: six bits
        # each, in 12 bytes for 8 times 32 weights. Here m is s and low 7.5 scales, so that it is
        # scale * s * (n - 7.5); the mean squares of s and of n - 7.5 are 1333.5 and 21.25.
        fields = [("scale", "<f2"), ("low", "<f2"), ("scales", "u1", 12), ("weights", "u1", 128)]
        blocks = np.empty(math.prod(shape) // 256, fields)
        blocks["scale"] = deviation / math.sqrt(1333.5 * 21.25)
        blocks["low"] = 7.5 * blocks["scale"]
        first, last = random_bytes(random, len(blocks), 4), random_bytes(random, len(blocks), 4)
        blocks["scales"] = np.concatenate([first, first, (last & 15) * 17], axis=1)
        blocks["weights"] = random_bytes(random, len(blocks), 128)
        return blocks
    # Q6_K: a weight is scale * s * (n - 32) with n from 0 to 63 (mean square 341.5), and s an int8
    # that 16 weights share, here from -16 to 15 (mean square 85.5).
    fields = [("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("scale", "<f2")]
    blocks = np.empty(math.prod(shape) // 256, fields)
    blocks["low"] = random_bytes(random, len(blocks), 128)
    blocks["high"] = random_bytes(random, len(blocks), 64)
    blocks["scales"] = random.integers(-16, 16, size=(len(blocks), 16), dtype=np.int8)
    blocks["scale"] = deviation / math.sqrt(341.5 * 85.5)
    return blocks


def random_bytes(random, rows: int, columns: int):
    import numpy as np

    return np.frombuffer(random.bytes(rows * columns), np.uint8).reshape(rows, columns)


def add_metadata(writer, model: Architecture, text: str) -> None:
    """What llama.cpp needs to know of the model, its vocabulary, and that it is a twin."""
    import gguf

    writer.add_name(f"{model.name}, random weights")
    writer.add_bool(SYNTHETIC_KEY, True)
    writer.add_file_type(gguf.LlamaFileType[model.file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.embedding)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_rope_dimension_count(model.head)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_key_length(model.head)
    writer.add_value_length(model.head)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(model.rms_epsilon)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(model.experts_used)
        writer.add_expert_feed_forward_length(model.expert_feed_forward)
    tokens, scores, types = vocabulary(model.vocabulary, text)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def vocabulary(size: int, text: str) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece vocabulary in which a word of `text` is a token.

    The tokenizer joins neighbours, beginning with characters, to tokens that exist. So a word needs
    all of its beginnings as tokens. Made-up words fill the rest.
    """
    from gguf import TokenType

    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    words = re.findall(r" ?[A-Za-z]+| ?[^A-Za-z\s]", f" {text}")
    beginnings = [word[:end] for word in words for end in range(1, len(word) + 1)]
    known = dict.fromkeys([" ", *string.printable.strip(), *beginnings])
    syllables = ["".join(pair) for pair in itertools.product("bcdfghjklmnpqrstvwxyz", "aeiou")]
    made_up = (
        start + "".join(parts)
        for length in itertools.count(1)
        for parts in itertools.product(syllables, repeat=length)
        for start in ("", " ")
    )
    new = (word for word in made_up if word not in known)
    rest = itertools.islice(new, max(0, size - len(special) - len(known)))
    words = [*known, *rest][: size - len(special)]
    tokens = special + [word.replace(" ", SPACE) for word in words]
    return tokens, [0.0] * len(tokens), types + [TokenType.NORMAL] * len(words)
