"""Downloads that break off, stall or crawl: a loopback server that misbehaves."""

import hashlib
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import harness.data
import utils
from harness.data import DataUnreachable, download

DATA = bytes(range(256)) * 4000  # 1 MB
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server():
    """Serves DATA; `give` is how many bytes an answer brings before `then`: `end` or `stall`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            http.ranges.append(self.headers.get("Range"))
            found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(found[1]) if found and http.resumes else 0
            if start >= len(DATA):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(DATA) - start))
            self.end_headers()
            self.wfile.write(DATA[start : start + (http.give or len(DATA))])
            if http.give and http.then == "stall":
                http.released.wait(10)
            self.close_connection = True

        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.ranges, http.give, http.then, http.resumes = [], None, "end", True
    http.released = threading.Event()
    threading.Thread(target=http.serve_forever, daemon=True).start()
    http.address = f"http://127.0.0.1:{http.server_port}/data.tar.gz"
    yield http
    http.released.set()
    http.shutdown()
    http.server_close()


def test_md5_and_sha256(server, tmp_path):
    for checksum in (SHA256, hashlib.md5(DATA).hexdigest()):
        assert download(server.address, checksum, tmp_path).read_bytes() == DATA
    assert server.ranges == [None]  # fetched once


def test_a_download_that_breaks_off_goes_on_where_it_was(server, tmp_path):
    server.give = 300_000
    assert download(server.address, SHA256, tmp_path).read_bytes() == DATA
    asked = [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert server.ranges == asked
    assert [path.name for path in tmp_path.iterdir()] == ["data.tar.gz"]


def test_a_stalled_download_is_given_up_and_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(harness.data, "STALLED_SECONDS", 0.5)
    server.give, server.then = 600_000, "stall"
    started = time.monotonic()
    assert download(server.address, SHA256, tmp_path).read_bytes() == DATA
    assert time.monotonic() - started < 10
    assert len(server.ranges) == 2


def test_a_server_that_knows_no_ranges_starts_anew(server, tmp_path):
    server.resumes = False
    (tmp_path / "data.tar.gz.part").write_bytes(DATA[:1000])
    assert download(server.address, SHA256, tmp_path).read_bytes() == DATA


def test_the_next_run_goes_on(server, tmp_path):
    (tmp_path / "data.tar.gz.part").write_bytes(DATA[:700_000])
    assert download(server.address, SHA256, tmp_path).read_bytes() == DATA
    assert server.ranges == ["bytes=700000-"]


def test_a_part_that_is_whole_already_is_only_checked(server, tmp_path):
    (tmp_path / "data.tar.gz.part").write_bytes(DATA)
    assert download(server.address, SHA256, tmp_path).read_bytes() == DATA


def test_a_part_of_another_file_is_found_damaged(server, tmp_path):
    (tmp_path / "data.tar.gz.part").write_bytes(b"x" * 1000)
    with pytest.raises(utils.UserError, match="--data_dir.*damaged.*delete"):
        download(server.address, SHA256, tmp_path)


def test_a_server_that_brings_nothing_more_is_unreachable(server, tmp_path, monkeypatch):
    monkeypatch.setattr(harness.data.time, "sleep", lambda _: None)
    (tmp_path / "data.tar.gz.part").write_bytes(DATA[:500_000])
    server.give, server.resumes = 500_000, False
    with pytest.raises(DataUnreachable, match="broke off at .* goes on"):
        download(server.address, SHA256, tmp_path)
    assert len(server.ranges) == harness.data.ATTEMPTS


def test_a_slow_mirror_is_said_with_rate_and_time(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness.data, "SLOW_SECONDS", 0.0)
    clock = iter(range(0, 100_000, 15))  # each look at the clock is 15 s later
    monkeypatch.setattr(harness.data.time, "monotonic", lambda: next(clock))
    told = []
    monkeypatch.setattr(harness.data, "tell", lambda *words: told.append(words))
    download(server.address, SHA256, tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "slow" in line]
    assert re.search(r"is slow: 0\.\d\d MB/s, .* left; --data=synthetic", line)
    stage, detail = told[0]
    assert stage == "downloading data.tar.gz" and re.match(r"\d of 1 MB, ", detail)


def test_connections_have_a_timeout(server, tmp_path, monkeypatch):
    """A server that accepts and is silent; without a time-out it would hold a night."""
    monkeypatch.setattr(harness.data, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(harness.data, "require_reachable", lambda url: None)
    monkeypatch.setattr(harness.data.time, "sleep", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/data.tar.gz"
        with pytest.raises(DataUnreachable):
            download(address, SHA256, tmp_path)
