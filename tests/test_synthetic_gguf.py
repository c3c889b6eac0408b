"""The twin has the real model's tensors, a usable vocabulary, and weights that stay finite."""

from collections import Counter

import gguf
import numpy as np
import pytest

import harness.twins.gguf
import llama2_test as script
import utils
from harness.frameworks import llama

TINY = harness.twins.gguf.Architecture("tiny.Q4_0", 2, 256, 512, 4, 2, 4096, 2048, 1e-6)
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


def test_file_holds_what_the_list_says(twin):
    reader = gguf.GGUFReader(twin)
    written = [(t.name, tuple(reversed(t.shape.tolist())), t.tensor_type) for t in reader.tensors]
    assert written == harness.twins.gguf.tensors(TINY)
    assert sum(t.n_bytes for t in reader.tensors) == harness.twins.gguf.weights_size(TINY)
    assert 0 < twin.stat().st_size - harness.twins.gguf.weights_size(TINY) < 2e6
    assert reader.get_field(harness.twins.gguf.SYNTHETIC_KEY).contents() is True


def test_weights_keep_the_variance_of_what_they_multiply(twin):
    for tensor in gguf.GGUFReader(twin).tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            assert (weights == 1).all()
            continue
        assert weights.var() * weights.shape[1] == pytest.approx(1, rel=0.1), tensor.name
        assert abs(weights.mean()) < weights.std() / 50


def test_seven_billion_parameters_speak_every_word_of_the_questions():
    text = llama.LLAMA2_PROMPT.format(" ".join(script.QUESTIONS))
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
