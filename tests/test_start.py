"""What a run needs of the system is looked for before its first minute, or mended."""

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import pytorch_test_nlp
from harness.launch import require_versions
from harness.process import UserError

ROOT = Path(__file__).parent.parent
PREPARE = """
from argparse import Namespace
from harness.frameworks import pytorch
from harness.process import UsageError
options = Namespace(device="cpu", seed=1, precision="fp32", compile=True, data="synthetic")
try:
    pytorch.prepare(options, None)
except UsageError as error:
    print(error)
"""


def test_compile_without_a_compiler_is_one_line_before_the_first_size(tmp_path):
    for program in ("env", "sh", "uname"):
        (tmp_path / program).symlink_to(shutil.which(program))
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("CC", "CXX")},
        "PATH": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PREPARE], env=environment, capture_output=True, text=True
    )
    (line,) = done.stdout.splitlines()
    assert "--compile" in line and "compiler" in line and "install" in line, done.stderr


@pytest.mark.parametrize("problem", [PermissionError, NotADirectoryError, FileNotFoundError])
def test_accuracy_needs_no_home_folder(monkeypatch, problem):
    def load(name):
        raise problem(13, "Permission denied", "/nonexistent/.cache")

    monkeypatch.setitem(sys.modules, "evaluate", types.SimpleNamespace(load=load))
    prediction = types.SimpleNamespace(
        predictions=np.array([[0.1, 0.9], [0.8, 0.2]]), label_ids=np.array([1, 1])
    )
    assert pytorch_test_nlp.accuracy(prediction) == 0.5


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_env_mends_a_half_made_environment(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("")
    python = tmp_path / ".venv/bin/python"
    # As an installation that was cut short leaves it: a Python, but no pip.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    has_pip = [python, "-m", "pip", "--version"]
    assert subprocess.run(has_pip, capture_output=True).returncode != 0
    make = ["make", "env", f"PYTHON={sys.executable}"]
    environment = {**os.environ, "PIP_NO_INDEX": "1"}  # what comes after pip needs the network
    subprocess.run(make, cwd=tmp_path, env=environment, capture_output=True)
    assert subprocess.run(has_pip, capture_output=True).returncode == 0


SCRIPT = """# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "numpy{}", "no-such-thing>=3", "pandas>=99; sys_platform == 'a-machine-that-this-is-not'",
# ]
# ///
"""


@pytest.mark.parametrize("wanted", ["", ">=1,<1.1", "!=1.5"])
def test_newer_packages_than_asked_for_are_tried(tmp_path, wanted):
    (tmp_path / "a_test.py").write_text(SCRIPT.format(wanted))
    require_versions(tmp_path / "a_test.py")


def test_an_older_package_is_one_line(tmp_path):
    (tmp_path / "a_test.py").write_text(SCRIPT.format(">=99.2,<100"))
    with pytest.raises(UserError, match=r"numpy \S+ is too old .+ install 'numpy>=99.2'"):
        require_versions(tmp_path / "a_test.py")


STAND_IN = """#!/bin/sh
printf '%s\\n' "$@" "PYTHONPATH=$PYTHONPATH" "PYTHONSAFEPATH=$PYTHONSAFEPATH" "$RESULTS_DIR" > said
"""


@pytest.fixture
def make(tmp_path):
    """Runs a target in a folder whose Python only says how it was called."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)
    (tmp_path / ".venv/.installed").touch()

    def run(*words, **variables):
        done = subprocess.run(
            ["make", *words], cwd=tmp_path, env={**os.environ, **variables}, capture_output=True,
            text=True,
        )  # fmt: skip
        said = tmp_path / "said"
        return done, said.read_text().splitlines() if said.exists() else []

    return run


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("target", ["page", "check-results", "report"])
def test_make_takes_a_results_folder_with_blanks_and_quotes(make, target, tmp_path):
    folder = 'my "good" results\' 1'
    done, said = make(target, f"RESULTS_DIR={folder}")
    assert done.returncode == 0, done.stderr
    assert folder in [word.removeprefix("--output-dir=") for word in said]
    if target == "report":  # its sockets lie elsewhere, and go
        (socket,) = [word for word in said if word.startswith("--KernelManager.ip=")]
        place = Path(socket.partition("=")[2]).parent
        assert place.is_absolute() and place != tmp_path and not place.exists()


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_keeps_the_packages_of_others_out(make):
    _, said = make("test", PYTHONPATH="/opt/ros/lib", PYTHONSAFEPATH="1")
    assert "PYTHONPATH=" in said and "PYTHONSAFEPATH=" in said


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_report_says_first_where_it_cannot_write(make, tmp_path):
    (tmp_path / "results").write_text("no folder")
    done, said = make("report")
    assert done.returncode != 0 and not said
    assert "RESULTS_DIR=results cannot be written" in done.stdout
