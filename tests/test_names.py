"""What a file takes from another one of the project is there: also in code that no test runs."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = (".", "harness", "harness/frameworks", "harness/models", "harness/twins")
FILES = [
    file
    for folder in (*FOLDERS, "reporting", "selfchecks")
    for file in (ROOT / folder).glob("*.py")
]


def file_of(module: str) -> Path | None:
    """The project's file or folder of a module; None for a library's."""
    path = ROOT / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path) if p.exists()), None)


@cache
def names_in(path: Path) -> set[str]:
    """What a module has: what it defines, imports or assigns anywhere outside of functions."""
    if path.is_dir():
        return {file.stem for file in path.iterdir()} | names_in(path / "__init__.py")
    names, open_nodes = set(), [ast.parse(path.read_text())]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.Global):
            names |= set(node.names)
        open_nodes += ast.iter_child_nodes(node)
    return names


def missing(path: Path) -> set[str]:
    """What a file takes from modules of the project, and none of them has.

    A word may stand for several modules, each in a function of its own.
    """
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules, gone = {}, set()
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules.setdefault(alias.asname or alias.name, set()).add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                modules.setdefault(alias.asname or alias.name, set()).add(full)
                if (file := file_of(node.module)) and alias.name not in names_in(file):
                    gone.add(full)
    for node in nodes:
        if isinstance(node, ast.Attribute) and (words := ast.unparse(node.value)) in modules:
            files = set(map(file_of, modules[words]))
            if None not in files and all(node.attr not in names_in(file) for file in files):
                gone.add(f"{words}.{node.attr}")
    return gone


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_taken_from_another_file_is_there(path):
    assert missing(path) == set()


def test_a_name_that_is_gone_is_found(tmp_path):
    file = tmp_path / "check.py"
    file.write_text("from harness import cifar100\n\ndef f():\n    cifar100.load()\n")
    assert missing(file) == {"cifar100.load"}
