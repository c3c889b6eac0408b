"""The file of a model: where it is found, whole or in parts, and what is none."""

import shutil
import sys
from argparse import Namespace

import gguf
import pytest

import harness.twins.gguf
import utils
from harness import gguf_file
from harness.frameworks import llama, llama_bench, llama_text
from harness.process import UsageError, UserError
from harness.questions import QUESTIONS, questions_to_ask

TINY = harness.twins.gguf.Architecture("tiny.Q4_0", 2, 256, 512, 4, 2, 4096, 2048, 1e-6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return harness.twins.gguf.ensure_twin(TINY, "How?", tmp_path_factory.mktemp("model"))


def load(path):
    options = Namespace(
        model_path=path,
        verbose=False,
        device="auto",
        n_gpu_layers=-1,
        split_mode="layer",
        tensor_split="",
    )
    return llama.load(options)


def test_name_on_the_hub_is_fetched_once_with_all_its_parts(model, hub, tmp_path):
    parts = [f"deep/x-0000{number}-of-00002.gguf" for number in (1, 2)]
    files = {name: model.read_bytes() for name in [*parts, "other.gguf"]}
    hub.add("model", "someone/models", files)
    found = gguf_file.find(f"someone/models:{parts[0]}", tmp_path)
    assert [part.name for part in gguf_file.parts(found)] == [part[5:] for part in parts]
    assert not list(tmp_path.rglob("other.gguf"))
    hub.requests.clear()
    assert gguf_file.find(f"someone/models:{parts[0]}", tmp_path) == found
    assert hub.requests == []
    # Another file of the same repository, which is there in part.
    assert gguf_file.find("someone/models:other.gguf", tmp_path).name == "other.gguf"
    with pytest.raises(UserError, match="no such file"):
        gguf_file.find("someone/models:missing.gguf", tmp_path)


def test_path_in_the_home_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(model, tmp_path / "m.gguf")
    assert gguf_file.find("~/m.gguf", tmp_path) == tmp_path / "m.gguf"
    with pytest.raises(UsageError, match="owner/repo:file.gguf"):
        gguf_file.find("~/n.gguf", tmp_path)
    with pytest.raises(UsageError, match="~nobody-here/m.gguf: there is no such file"):
        gguf_file.find("~nobody-here/m.gguf", tmp_path)


def test_parts_count_together_and_none_may_be_missing(model, tmp_path):
    first, second = (tmp_path / f"x-0000{number}-of-00002.gguf" for number in (1, 2))
    shutil.copy(model, first)
    with pytest.raises(UserError, match="x-00002-of-00002.gguf.*missing"):
        gguf_file.require_gguf(first)
    shutil.copy(model, second)
    gguf_file.require_gguf(first)
    assert gguf_file.size(first) == 2 * model.stat().st_size
    assert gguf_file.model_tag(first) == "x"
    with pytest.raises(UserError, match="part 2 of 2: give the first one"):
        gguf_file.require_gguf(second)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "web page"),
        (b"PK\x03\x04", "it starts with b'PK"),
    ],
)
def test_what_is_no_gguf_is_named(start, reason, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(start)
    with pytest.raises(UserError, match=reason):
        gguf_file.require_gguf(path)


def test_vocabulary_alone_is_one_line(tmp_path):
    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    harness.twins.gguf.add_metadata(writer, TINY, "How?")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="cannot load it: .*token_embd.weight. not found"):
        load(path)


def twin_with(add, folder, monkeypatch):
    """A twin to whose metadata `add` adds something."""
    real = harness.twins.gguf.add_metadata

    def with_more(writer, *arguments):
        real(writer, *arguments)
        add(writer)

    monkeypatch.setattr(harness.twins.gguf, "add_metadata", with_more)
    return harness.twins.gguf.ensure_twin(TINY, "How?", folder)


def test_embedding_model_is_refused(tmp_path, monkeypatch):
    path = twin_with(
        lambda writer: writer.add_pooling_type(gguf.PoolingType.MEAN), tmp_path, monkeypatch
    )
    with pytest.raises(UserError, match="embedding model"):
        load(path)


def prompt_of(template, folder, monkeypatch, system_prompt=""):
    """The tokens' texts of a question, as a model with that template in its file is asked."""
    path = twin_with(
        lambda writer: writer.add_key_value(
            "tokenizer.chat_template", template, gguf.GGUFValueType.STRING
        ),
        folder,
        monkeypatch,
    )
    llm = load(path)
    tokens = llama_text.prompt_tokens(llm, "How?", system_prompt)
    return b"".join(llama_text.piece(llm, token) for token in tokens).decode().replace(" ", "")


PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    "template",
    [PARTS, PARTS.replace("<", "{% if m.content is string %}{{ 1 / 0 }}{% endif %}<", 1)],
)
def test_template_that_wants_typed_parts_has_the_question(template, tmp_path, monkeypatch):
    prompt = prompt_of(template, tmp_path, monkeypatch, "Hold")
    assert prompt == "<system>Hold<user>How?"


def test_template_of_any_length_is_whole(tmp_path, monkeypatch):
    template = "{# " + 300_000 * "x" + " #}{{ messages[0].content }}!"
    assert prompt_of(template, tmp_path, monkeypatch) == "How?!"


@pytest.mark.parametrize(
    ("template", "system_prompt", "problem"),
    [
        ("", "", "leaves out the question"),
        ("<user>", "", "leaves out the question"),
        ("{{ messages[0].content[:2] }}", "", "leaves out the question"),
        ("{{ messages[-1].content }}", "Hold", "leaves out the system prompt"),
        ("{{ 1 / 0 }}", "", "refuses it: division by zero"),
    ],
)
def test_prompt_without_what_is_asked_is_refused(
    template, system_prompt, problem, tmp_path, monkeypatch
):
    with pytest.raises(UserError) as caught:
        prompt_of(template, tmp_path, monkeypatch, system_prompt)
    (line,) = str(caught.value).splitlines()
    assert str(tmp_path) in line and problem in line


def test_template_that_is_no_text_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="tiny.Q4_0.gguf: its tokenizer.chat_template is no UTF-8"):
        prompt_of(b"\xff{{ messages[0].content }}", tmp_path, monkeypatch)


def test_prompt_of_no_tokens_is_refused(model, monkeypatch):
    llm = load(model)
    with pytest.raises(UserError, match="tiny.Q4_0.gguf: .*no tokens"):
        llama_text.tokenize(llm, "", add_special=False)


def test_model_without_a_beginning_of_sequence(model, monkeypatch):
    llm = load(model)
    monkeypatch.setattr("llama_cpp.llama_vocab_bos", lambda _: -1)
    monkeypatch.setattr("llama_cpp.llama_vocab_get_add_bos", lambda _: False)
    assert llama_text.special_token(llm, "bos") == ""
    options = Namespace(device="auto", n_gpu_layers=-1, n_threads=1, flash_attn="auto")
    with llama.open_context(llm, options, 512) as context:
        assert llama_bench.measure(context, "pp512", {})["prompt_token_len"] == 512


def test_questions_of_a_file(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("\ufeffWhat is a fjord?\n\n  Why is it deep?  \r\nWhat is a fjord?\n", "utf-8")
    assert questions_to_ask(file, "all") == ["What is a fjord?", "Why is it deep?"]
    assert questions_to_ask(None, 2) == QUESTIONS[:2]
    with pytest.raises(UsageError, match="--num_questions=3: there are 2"):
        questions_to_ask(file, 3)
    with pytest.raises(UsageError, match="--questions_file"):
        questions_to_ask(tmp_path, "all")


def test_gpus_share_a_model_as_asked(model, monkeypatch):
    import llama_cpp

    given = {}

    def note(path, parameters):
        given["mode"] = parameters.split_mode
        given["parts"] = parameters.tensor_split and parameters.tensor_split[:3]
        return 0  # as where a model cannot be loaded

    monkeypatch.setattr(llama_cpp, "llama_max_devices", lambda: 3)
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", note)
    options = Namespace(model_path=model, verbose=False, device="auto", n_gpu_layers=-1)
    for mode, parts, expected in (("row", "3,1", (2, [3, 1, 0])), ("layer", "", (1, None))):
        options.split_mode, options.tensor_split = mode, parts
        with pytest.raises(UserError):
            llama.load(options)
        assert (given["mode"], given["parts"] or None) == expected
    options.tensor_split = "1,1,1,1"
    with pytest.raises(UsageError, match="--tensor_split=1,1,1,1: at most 3 parts"):
        llama.load(options)


@pytest.mark.parametrize(
    ("device", "layers", "mode", "card"),
    [("auto", -1, 1, 0), ("cpu", 0, 1, 0), ("cuda", -1, 1, 0), ("cuda:1", -1, 0, 1)],
)
def test_the_device_asked_for_is_the_one(device, layers, mode, card, model, monkeypatch):
    import llama_cpp

    import llama2_test

    given = []
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", lambda _, p: given.append(p))
    monkeypatch.setattr(sys, "argv", ["llama2_test.py", f"--device={device}"])
    options = utils.parse_arguments(llama2_test.EXPERIMENT)
    options.model_path = model
    with pytest.raises(UserError):
        llama.load(options)
    (parameters,) = given
    assert (parameters.n_gpu_layers, parameters.split_mode) == (layers, mode)
    assert parameters.main_gpu == card
    assert llama.computes_on_gpu(options) is (device != "cpu")
    assert options.n_gpu_layers == -1  # on the processor as in a build without GPU


def test_another_device_than_the_one_asked_for_is_refused():
    for asked, used in (("auto", "cpu"), ("cpu", "cpu"), ("mps", "metal"), ("cuda:1", "cuda")):
        llama.require_device(asked, used)
    for asked, used in (("cuda", "cpu"), ("cuda:1", "metal"), ("mps", "cpu"), ("cpu", "cuda")):
        with pytest.raises(UsageError, match=f"--device={asked}: .* computes on {used} here"):
            llama.require_device(asked, used)


def test_one_card_is_shared_with_none(monkeypatch, capsys):
    import llama2_test

    monkeypatch.setattr(sys, "argv", ["llama2_test.py", "--device=cuda:1", "--split_mode=row"])
    with pytest.raises(SystemExit, match="2"):
        utils.parse_arguments(llama2_test.EXPERIMENT)
    assert "--device=cuda:1" in capsys.readouterr().err.splitlines()[-1]
