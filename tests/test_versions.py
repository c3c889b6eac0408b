"""An experiment whose protocol has changed asks whether its numbers still mean the same.

`python tests/test_versions.py` records the answer in protocols.json, beside the version.
"""

import ast
import hashlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from harness.experiment import Experiment  # noqa: E402
from reporting.experiments import find_experiments, script_names, script_of  # noqa: E402

RECORD = Path(__file__).with_name("protocols.json")
# Of what scripts share this makes numbers, the rest watches, names and saves.
CLOCKS = {"clock", "windows", "stopwatch", "fits", "soak"}
DATA = {"airline", "cifar100", "food101", "imdb", "questions"}
FOLDERS = {"frameworks", "models", "twins"}


def makes_numbers(module: str) -> bool:
    words = module.split(".")
    return words[0] == "harness" and bool({*words[1:2]} & (CLOCKS | DATA | FOLDERS))


def files_of(path: Path, found: set[Path]) -> set[Path]:
    """A script and what makes its numbers of all that it imports, and that imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    found.add(path)
    for file in {
        (ROOT / n.replace(".", "/")).with_suffix(".py") for n in filter(makes_numbers, names)
    }:
        if file.exists() and file not in found:
            files_of(file, found)
    return found


def code(path: Path) -> str:
    """The text of a file without docstrings, comments on lines of their own and white space."""
    lines = path.read_text().splitlines()
    for node in ast.walk(ast.parse(path.read_text())):
        scope = isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        if scope and ast.get_docstring(node):
            text = node.body[0]
            lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    kept = [line for line in lines if not line.lstrip().startswith("#")]
    return "".join("".join(kept).split())


def protocol(script: str) -> str:
    files = sorted(files_of(ROOT / script, set()))
    return hashlib.sha256("".join(map(code, files)).encode()).hexdigest()[:16]


def protocols() -> dict[str, list[str]]:
    versions = {script_of(experiment): experiment.version for experiment in find_experiments()}
    return {script: [versions[script], protocol(script)] for script in script_names()}


def test_a_changed_protocol_is_the_same_version_or_a_new_one():
    recorded = json.loads(RECORD.read_text())
    now = protocols()
    changed = [script for script in now if recorded.get(script) != now[script]]
    assert not changed, (
        f"{', '.join(changed)}: the script or what makes its numbers has changed. Where a number "
        "means something else now, raise EXPERIMENT.version; then python tests/test_versions.py"
    )


def test_what_makes_a_number_is_in_its_protocol():
    names = {path.name for path in files_of(ROOT / "pytorch_test_nlp.py", set())}
    wanted = {"pytorch_test_nlp.py", "clock.py", "windows.py", "pytorch.py", "trainer.py"}
    assert wanted <= names and not names & {"terminal.py", "results.py", "tensorflow.py"}


def test_words_change_no_protocol(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('"""Words."""\n\n\ndef f(x):\n    """Words."""\n    # words\n    return x\n')
    before = code(path)
    path.write_text('def f(x):\n    """Other."""\n    return x\n')
    assert code(path) == before
    path.write_text("def f(x):\n    return 2 * x\n")
    assert code(path) != before


@pytest.mark.parametrize(
    ("changed", "meaning"),
    [
        ({"project_version": "0.2.7"}, "0.2"),
        ({"project_version": "0.1.0"}, "0.2"),  # on a processor it meant the same
        ({"project_version": "0.1.0", "compile": "True"}, "0.1"),
        ({"project_version": "0.1.0", "device": "cuda (NVIDIA H100)"}, "0.1"),
        ({"project_version": None}, ""),
    ],
)
def test_older_rows_count_as_the_version_that_their_meaning_has(changed, meaning):
    row = {"device": "cpu", "compile": "False", "batch_size": "32"} | changed
    training = Experiment("t", "c", "d", "b", "cv", "m", epochs=5)
    assert training.meaning(row) == meaning
    generations = Experiment("t", "c", "d", "b", "generation", "m", generations=True)
    assert generations.meaning(row) == (changed["project_version"] or "")[:3]


if __name__ == "__main__":
    RECORD.write_text(json.dumps(protocols(), indent=1) + "\n")
