"""Downloads from the Hub: once, whole, reused offline; and what is said when they fail.

Each call runs in a process of its own, because huggingface_hub reads its address at import.
"""

import os
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import harness.data

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


def test_a_token_that_has_expired_does_not_hide_public_data(hub, tmp_path, monkeypatch):
    hub.add("dataset", "someone/tiny", FILES)
    hub.fault = "token"
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    said = fetch(tmp_path).splitlines()
    assert said[-1] == "['data/test-0.parquet', 'data/train-0.parquet']"
    assert "token of this machine is refused" in said[-2] and "HF_TOKEN" in said[-2]


def test_missing_certificates_are_named_with_their_cure(tmp_path, monkeypatch):
    """A server whose certificate nobody vouches for, as all are to python.org's Python on a Mac."""
    files = [str(tmp_path / name) for name in ("key.pem", "cert.pem")]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*make, "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}/"
    for system, cure in [("darwin", "Install Certificates.command"), ("linux", "SSL_CERT_FILE")]:
        monkeypatch.setattr(sys, "platform", system)
        with pytest.raises(harness.data.DataUnreachable, match=cure):
            harness.data.require_reachable(url)
    server.shutdown()
    server.server_close()
