"""A small server on loopback that serves repositories the way the Hugging Face Hub does."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".parquet", ".safetensors", ".gguf")  # the Hub keeps these apart and redirects to them


class Hub:
    """Serves what was added; `fault` makes it misbehave; `requests` lists what it was asked."""

    def __init__(self):
        self.files = {}  # (repository type, id) -> {path: bytes}
        self.fault = None  # "500" (every answer), "token" (refused), "cut" (files end half way)
        self.requests = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, repo_type: str, repo_id: str, files: dict[str, bytes]) -> None:
        self.files[repo_type, repo_id] = {"README.md": b"# tiny\n", **files}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.fault == "token" and "Authorization" in self.headers:
            return self.answer(401, b"", {"X-Error-Message": "Invalid credentials"})
        if hub.fault == "500":
            return self.answer(500, b"the server is broken")
        if match := re.fullmatch(r"/api/(dataset|model)s/([^/]+/[^/]+)/tree/[^/]+/?", path):
            return self.answer_json(match[1], match[2], tree)
        if match := re.fullmatch(r"/api/(dataset|model)s/([^/]+/[^/]+?)(/revision/.+)?", path):
            return self.answer_json(match[1], match[2], info)
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            repo = ("dataset" if match[1] else "model", match[2])
            return self.answer_file(hub.files.get(repo, {}).get(match[3]), match[3])
        if path.startswith("/cdn/"):
            by_hash = {sha256(data): data for repo in hub.files.values() for data in repo.values()}
            return self.answer_bytes(by_hash[path.removeprefix("/cdn/")])
        return self.answer(404, b"not found")

    do_HEAD = do_GET

    def answer_json(self, repo_type, repo_id, describe):
        files = self.server.hub.files.get((repo_type, repo_id))
        if files is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        body = json.dumps(describe(repo_id, files)).encode()
        return self.answer(200, body, {"Content-Type": "application/json"})

    def answer_file(self, data, path):
        if data is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": COMMIT}
        if path.endswith(LARGE):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256(data)}"'}
            # Another host than the one asked, as the real one is.
            cdn = self.server.hub.url.replace("127.0.0.1", "localhost")
            return self.answer(302, b"", {**headers, "Location": f"{cdn}/cdn/{sha256(data)}"})
        return self.answer_bytes(data, headers | {"ETag": f'"{git_hash(data)}"'})

    def answer_bytes(self, data, headers=None):
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        part = data[int(start[1]) :] if start else data
        return self.answer(206 if start else 200, part, headers, cut=self.server.hub.fault == "cut")

    def answer(self, status, body, headers=None, cut=False):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, *arguments):
        pass


def tree(repo_id, files) -> list[dict]:
    """What `/api/.../tree/...` lists."""
    entries = []
    for path, data in files.items():
        entry = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
        entries.append(entry)
    return entries


def info(repo_id, files) -> dict:
    """What `/api/.../revision/...` answers."""
    siblings = [{"rfilename": path} for path in files]
    return {"_id": "1", "id": repo_id, "sha": COMMIT, "private": False, "gated": False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings,
            "lastModified": "2026-01-01T00:00:00.000Z"}  # fmt: skip


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
