"""The twin has the real model's tensors, a usable vocabulary, and weights that stay finite."""

from collections import Counter

import gguf
import numpy as np
import pytest

import harness.twins.gguf
import utils
from harness.frameworks.llama import capture_log
from harness.questions import LLAMA2_PROMPT, QUESTIONS

TINY = harness.twins.gguf.Architecture("tiny.Q4_0", 2, 256, 512, 4, 2, 4096, 2048, 1e-6)
EIGHT_B = harness.twins.gguf.ARCHITECTURES["llama-3.1-8b"]
EXPERTS = harness.twins.gguf.ARCHITECTURES["qwen3-30b-a3b"]
SMALL = {"embedding": 256, "heads": 4, "kv_heads": 2, "vocabulary": 512, "context": 512}
TINY_Q4_K = EIGHT_B._replace(name="tiny.Q4_K_M", layers=2, feed_forward=512, **SMALL)
OF_EXPERTS = {"experts": 6, "experts_used": 2, "expert_feed_forward": 256}
TINY_EXPERTS = EXPERTS._replace(name="tiny-experts.Q4_K_M", layers=2, **OF_EXPERTS, **SMALL)
TEXT = "How does a bicycle stay upright? Reason step by step."


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return harness.twins.gguf.ensure_twin(TINY, TEXT, tmp_path_factory.mktemp("twin"))


def test_7b_has_the_published_models_tensors_and_size():
    model = harness.twins.gguf.ARCHITECTURES["llama-2-7b"]
    tensors = harness.twins.gguf.tensors(model)
    assert Counter(kind.name for _, _, kind in tensors) == {"F32": 65, "Q4_0": 225, "Q6_K": 1}
    assert len({name for name, _, _ in tensors}) == 291
    assert round(harness.twins.gguf.weights_size(model) / 2**30, 2) == 3.56
    parameters = sum(int(np.prod(shape)) for _, shape, _ in tensors)
    assert parameters == 6_738_415_616


def test_tinyllama_has_its_published_parameters():
    tensors = harness.twins.gguf.tensors(harness.twins.gguf.ARCHITECTURES["tinyllama-1.1b"])
    assert sum(int(np.prod(shape)) for _, shape, _ in tensors) == 1_100_048_384


@pytest.mark.parametrize(
    ("model", "types", "gibibytes", "parameters"),
    [
        # As llama.cpp and llama-bench print them of the published files.
        (EIGHT_B, {"F32": 66, "Q4_K": 193, "Q6_K": 33}, 4.58, 8.03),
        (EXPERTS, {"F32": 241, "Q4_K": 289, "Q6_K": 49}, 17.28, 30.53),
    ],
)
def test_todays_models_have_the_published_tensors_and_size(model, types, gibibytes, parameters):
    tensors = harness.twins.gguf.tensors(model)
    assert Counter(kind.name for _, _, kind in tensors) == types
    assert round(harness.twins.gguf.weights_size(model) / 2**30, 2) == gibibytes
    assert round(sum(int(np.prod(shape)) for _, shape, _ in tensors) / 1e9, 2) == parameters


@pytest.mark.parametrize(
    "model",
    [
        EIGHT_B._replace(layers=32, feed_forward=256, **SMALL),
        EXPERTS._replace(layers=24, **OF_EXPERTS, **SMALL),
    ],
)
def test_types_are_those_that_llama_cpp_quantizes_to(model, tmp_path, monkeypatch):
    """A model of floats, quantized to Q4_K_M by llama.cpp itself."""
    import llama_cpp

    wanted = {name: kind for name, _, kind in harness.twins.gguf.tensors(model)}
    source, target = tmp_path / "floats.gguf", tmp_path / "quantized.gguf"
    floats = gguf.GGMLQuantizationType.F32
    monkeypatch.setattr(harness.twins.gguf, "type_of", lambda *_: floats)
    harness.twins.gguf.write_twin(source, model, TEXT)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    capture_log(verbose=False)
    paths = [str(path).encode() for path in (source, target)]
    assert llama_cpp.llama_model_quantize(*paths, parameters) == 0
    assert {t.name: t.tensor_type for t in gguf.GGUFReader(target).tensors} == wanted


@pytest.mark.parametrize("model", [TINY, TINY_Q4_K, TINY_EXPERTS], ids=lambda model: model.name)
def test_file_holds_what_the_list_says(model, tmp_path):
    twin = harness.twins.gguf.ensure_twin(model, TEXT, tmp_path)
    reader = gguf.GGUFReader(twin)
    written = [(t.name, tuple(reversed(t.shape.tolist())), t.tensor_type) for t in reader.tensors]
    assert written == harness.twins.gguf.tensors(model)
    assert sum(t.n_bytes for t in reader.tensors) == harness.twins.gguf.weights_size(model)
    assert 0 < twin.stat().st_size - harness.twins.gguf.weights_size(model) < 2e6
    assert reader.get_field(harness.twins.gguf.SYNTHETIC_KEY).contents() is True


@pytest.mark.parametrize("model", [TINY, TINY_Q4_K, TINY_EXPERTS], ids=lambda model: model.name)
def test_weights_keep_the_variance_of_what_they_multiply(model, tmp_path):
    for tensor in gguf.GGUFReader(harness.twins.gguf.ensure_twin(model, TEXT, tmp_path)).tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 1:
            assert (weights == 1).all()
            continue
        assert weights.var() * weights.shape[-1] == pytest.approx(1, rel=0.15), tensor.name
        assert abs(weights.mean()) < weights.std() / 20


def test_vocabulary_has_every_word_of_the_questions():
    text = LLAMA2_PROMPT.format(" ".join(QUESTIONS))
    tokens, scores, types = harness.twins.gguf.vocabulary(32_000, text)
    assert len(tokens) == len(set(tokens)) == len(scores) == len(types) == 32_000
    assert {"\u2581refrigerator", "\u2581step", "INST"} <= set(tokens)
    assert tokens[1:4] == ["<s>", "</s>", "<0x00>"]


def test_twin_is_written_once_and_leaves_nothing_else(twin):
    before = twin.stat().st_mtime_ns
    assert harness.twins.gguf.ensure_twin(TINY, TEXT, twin.parent) == twin
    assert twin.stat().st_mtime_ns == before
    assert {path.suffix for path in twin.parent.iterdir()} <= {".gguf", ".lock"}


def test_interrupted_writing_leaves_no_model(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(harness.twins.gguf, "random_tensor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harness.twins.gguf.ensure_twin(TINY, TEXT, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = harness.twins.gguf.shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(harness.twins.gguf.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(utils.UserError, match=r"--data_dir.*3\.8 GB.*1\.0 GB free"):
        harness.twins.gguf.ensure_twin(
            harness.twins.gguf.ARCHITECTURES["llama-2-7b"], TEXT, tmp_path
        )
    assert list(tmp_path.glob("*.gguf")) == []


def test_folder_that_cannot_be_written():
    with pytest.raises(utils.UserError, match="--data_dir"):
        harness.twins.gguf.ensure_twin(TINY, TEXT, harness.twins.gguf.Path("/proc/nowhere"))
