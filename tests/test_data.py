"""Downloads from the Hub: once, whole, reused offline; and what is said when they fail.

Each call runs in a process of its own, because huggingface_hub reads its address at import.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = """
import sys
from pathlib import Path
import utils, harness.data
try:
    folder = harness.data.from_hub("someone/tiny", "dataset", ["data/*.parquet"], Path(sys.argv[1]))
    print(sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")))
except (harness.data.DataUnreachable, utils.UserError) as error:
    print(f"{type(error).__name__}: {error}")
"""
FILES = {"data/train-0.parquet": b"PAR1" * 500, "data/test-0.parquet": b"PAR1", "other.txt": b"no"}


def fetch(data_dir) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(data_dir)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_wanted_files_are_downloaded_once_and_reused(hub, tmp_path, monkeypatch):
    hub.add("dataset", "someone/tiny", FILES)
    assert fetch(tmp_path) == "['data/test-0.parquet', 'data/train-0.parquet']"
    assert any("/cdn/" in request for request in hub.requests)
    hub.requests.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(tmp_path) == "['data/test-0.parquet', 'data/train-0.parquet']"
    assert hub.requests == []


@pytest.mark.parametrize("fault", ["500", "cut", "gone", "unreachable"])
def test_a_hub_that_fails_is_unreachable_and_mends(hub, tmp_path, monkeypatch, fault):
    if fault != "gone":
        hub.add("dataset", "someone/tiny", FILES)
    hub.fault = fault
    with monkeypatch.context() as patch:
        if fault == "unreachable":
            patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert fetch(tmp_path).startswith("DataUnreachable: ")
    # What was half there is not taken for the whole.
    hub.fault = None
    hub.add("dataset", "someone/tiny", FILES)
    assert fetch(tmp_path) == "['data/test-0.parquet', 'data/train-0.parquet']"


def test_a_folder_that_cannot_be_written_is_the_users_error(hub, tmp_path):
    hub.add("dataset", "someone/tiny", FILES)
    (tmp_path / "hub").write_text("in the way")
    assert fetch(tmp_path).startswith(f"UserError: --data_dir={tmp_path}")
