"""Writes a GGUF of random weights that costs a machine the same work as a real Llama model.

How fast a dense model generates depends on the shapes and types of its tensors, not on their
values. The twin of Llama 2 7B has the tensors of llama-2-7b-chat.Q4_0.gguf: the matrices Q4_0, the
output Q6_K, the norms F32, 3.56 GiB in all. Its vocabulary is made up, with tokens for the words
of a given text, so that this text takes about as many tokens as with the real one.

Block layouts: block_q4_0 and block_q6_K in ggml/src/ggml-common.h of github.com/ggml-org/llama.cpp
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
    """A Llama model: what `llama.*` metadata of its GGUF say. `name` is the file's, without end."""

    name: str
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rms_epsilon: float


ARCHITECTURES = {
    "llama-2-7b": Architecture(
        "llama-2-7b-chat.Q4_0", 32, 4096, 11008, 32, 32, 32000, 4096, rms_epsilon=1e-6
    ),
    "tinyllama-1.1b": Architecture(
        "tinyllama-1.1b-chat-v1.0.Q4_0", 22, 2048, 5632, 32, 4, 32000, 2048, rms_epsilon=1e-5
    ),
}


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
        writer = gguf.GGUFWriter(temporary, "llama")
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
    """Name, shape (rows, columns) and type of every tensor, in the order of the file."""
    from gguf import GGMLQuantizationType as Type

    width, kv_width = model.embedding, model.embedding // model.heads * model.kv_heads
    layer = [
        ("attn_norm", (width,), Type.F32),
        ("attn_q", (width, width), Type.Q4_0),
        ("attn_k", (kv_width, width), Type.Q4_0),
        ("attn_v", (kv_width, width), Type.Q4_0),
        ("attn_output", (width, width), Type.Q4_0),
        ("ffn_norm", (width,), Type.F32),
        ("ffn_gate", (model.feed_forward, width), Type.Q4_0),
        ("ffn_up", (model.feed_forward, width), Type.Q4_0),
        ("ffn_down", (width, model.feed_forward), Type.Q4_0),
    ]
    return [
        ("token_embd.weight", (model.vocabulary, width), Type.Q4_0),
        *(
            (f"blk.{number}.{name}.weight", shape, kind)
            for number in range(model.layers)
            for name, shape, kind in layer
        ),
        ("output_norm.weight", (width,), Type.F32),
        ("output.weight", (model.vocabulary, width), Type.Q6_K),
    ]


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

    if kind == Type.F32:
        return np.ones(shape, np.float32)
    deviation = 1 / math.sqrt(shape[-1])
    if kind == Type.Q4_0:
        # A weight is scale * (n - 8) with n from 0 to 15, whose mean square is 21.5.
        blocks = np.empty(math.prod(shape) // 32, [("scale", "<f2"), ("weights", "u1", 16)])
        # Of either sign, as in real files; and the mean of n - 8, which is not 0, cancels out.
        signs = 1 - 2 * random.integers(2, size=len(blocks), dtype=np.int8)
        blocks["scale"] = signs * np.float16(deviation / math.sqrt(21.5))
        blocks["weights"] = random_bytes(random, len(blocks), 16)
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
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.embedding)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_rope_dimension_count(model.embedding // model.heads)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(model.rms_epsilon)
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
