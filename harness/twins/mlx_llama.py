"""Writes a Llama model of random weights in the form that mlx-lm loads, as costly as the real one.

The twin of Llama 2 7B has the tensors that `mlx_lm.convert` writes with 4 bits: every matrix,
embedding and output included, quantized in groups of 64 weights that share a scale and an offset in
float16; the norms float16; 3.79 GB in all. Its vocabulary is made up, as that of the GGUF twin.
"""

import json
import math
import shutil
from pathlib import Path

from filelock import FileLock

from harness.process import UserError, run_in_fresh_process, value_of
from harness.questions import LLAMA2_PROMPT
from harness.twins.gguf import Architecture, require_room, vocabulary

SYNTHETIC_KEY = "speed_test_synthetic"  # in the config.json of a twin only
GROUP, BITS = 64, 4
CHAT_TEMPLATE = "{{ bos_token }}" + LLAMA2_PROMPT.format("{{ messages[-1]['content'] }}")


def ensure_twin(name: str, model: Architecture, text: str, folder: Path) -> Path:
    """The folder with the twin of `model`, called `name`, written if it is not there yet.

    Args:
        text: its words are tokens of the made-up vocabulary.
        folder: of all twins.

    Raises:
        UserError: the disk has no room, or refuses a file.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two runs at once write it once.
        with FileLock(folder / f"{name}.lock"):
            if not path.exists():
                require_room(folder, weights_size(model))
                # In a process of its own: MLX keeps the memory that it has used.
                value_of(run_in_fresh_process(write_twin, path, model, text))
    except OSError as error:
        raise UserError(f"--data_dir: {path} cannot be written ({error.strerror})") from None
    return path


def write_twin(path: Path, model: Architecture, text: str, seed: int = 0) -> None:
    """Write the twin of `model`, whose vocabulary has the words of `text`, to the folder `path`."""
    import mlx.core as mx
    import numpy as np

    random = np.random.default_rng(seed)
    partial = path.with_name(f"{path.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was cut short
    partial.mkdir()
    weights = {}
    for name, shape in tensors(model).items():
        weights |= random_tensor(name, shape, random)
    mx.save_safetensors(str(partial / "model.safetensors"), weights, {"format": "mlx"})
    (partial / "config.json").write_text(json.dumps(config(model), indent=2))
    write_tokenizer(partial, model.vocabulary, text)
    partial.rename(path)


def tensors(model: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes (rows, columns) of the matrices and (columns,) of the norms, by name."""
    width, kv_width = model.embedding, model.embedding // model.heads * model.kv_heads
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv_width, width),
        "self_attn.v_proj": (kv_width, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (model.feed_forward, width),
        "mlp.up_proj": (model.feed_forward, width),
        "mlp.down_proj": (width, model.feed_forward),
    }
    return {
        "model.embed_tokens": (model.vocabulary, width),
        **{f"model.layers.{i}.{n}": s for i in range(model.layers) for n, s in layer.items()},
        "model.norm": (width,),
        "lm_head": (model.vocabulary, width),
    }


def weights_size(model: Architecture) -> int:
    """Bytes of all tensors."""
    return sum(
        rows[0] * BITS // 8 * columns + 4 * rows[0] * columns // GROUP if rows else 2 * columns
        for *rows, columns in tensors(model).values()
    )


def random_tensor(name: str, shape: tuple[int, ...], random) -> dict:
    """A norm, or a quantized matrix whose product with a vector of unit variance has about that."""
    import mlx.core as mx
    import numpy as np

    if len(shape) == 1:
        return {f"{name}.weight": mx.ones(shape, mx.float16)}
    rows, columns = shape
    packed = random.integers(2**32, size=(rows, columns * BITS // 32), dtype=np.uint32)
    # A weight is scale * n + bias with n from 0 to 15: mean 7.5, variance 21.25.
    scales = np.full((rows, columns // GROUP), 1 / math.sqrt(21.25 * columns), np.float16)
    return {
        f"{name}.weight": mx.array(packed),
        f"{name}.scales": mx.array(scales),
        f"{name}.biases": mx.array(-7.5 * scales),
    }


def config(model: Architecture) -> dict:
    """The model's config.json. No token ends a sequence: random weights would do it anywhere."""
    quantization = {"group_size": GROUP, "bits": BITS, "mode": "affine"}
    return {
        SYNTHETIC_KEY: True,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.embedding,
        "intermediate_size": model.feed_forward,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "max_position_embeddings": model.context,
        "vocab_size": model.vocabulary,
        "rms_norm_eps": model.rms_epsilon,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "quantization": quantization,
        "quantization_config": quantization,
    }


def write_tokenizer(folder: Path, size: int, text: str) -> None:
    """tokenizer.json and tokenizer_config.json of a vocabulary with the words of `text`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    tokens, _, _ = vocabulary(size, text)
    # Every token costs the same, so that a text is cut into as few as can be.
    tokenizer = Tokenizer(models.Unigram([(t, -1.0) for t in tokens], 0, byte_fallback=True))
    space = "\u2581"
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(space), normalizers.Replace(" ", space)]
    )
    # As Llama 2 has it, by which mlx-lm chooses its streaming detokenizer.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(space, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2))
