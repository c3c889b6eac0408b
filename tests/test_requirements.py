"""The three places that name packages agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def package_names(lines) -> set[str]:
    """Normalized names of requirement lines, comments and blank lines left out."""
    names = (re.match(r"[A-Za-z0-9_.-]+", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in names if name}


REQUIRED = package_names((ROOT / "requirements.in").read_text().splitlines())


SCRIPTS = [*sorted(ROOT.glob("*_test*.py")), ROOT / "selfcheck.py"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_inline_metadata_names_packages_of_requirements_in(script):
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", script.read_text(), re.MULTILINE)
    metadata = tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))
    assert metadata["requires-python"] == ">=3.11,<3.13"
    assert package_names(metadata["dependencies"]) <= REQUIRED


def test_lock_holds_every_package_and_no_address():
    lock = (ROOT / "requirements.txt").read_text()
    assert package_names(lock.splitlines()) >= REQUIRED
    assert "://" not in lock and "index" not in lock.replace("importlib", "")
