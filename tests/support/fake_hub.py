"""A small Hugging Face Hub on 127.0.0.1: the part of its HTTP interface that downloads need, and its error responses.

with Hub() as hub:
    hub.add("org/name", {"adapter_config.json": b"{}"}, tokens=["hf_reader"])
    # hub.url is the HF_ENDPOINT of the process under test
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One repository at one commit; `tokens` None: public; `gated`: metadata is public, files require a token."""

    files: dict[str, bytes]
    tokens: Sequence[str] | None
    gated: bool
    commit: str
    sizes: dict[str, int] = field(default_factory=dict)  # the reported size, instead of the true one


@dataclass
class Hub:
    """The server. `requests`: (method, path) so far; `failing`: the status of every answer; `delay`: in seconds."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    known_tokens: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failing: int | None = None
    delay: float = 0.0
    drip: float | None = None  # seconds between the bytes of a GET's answer
    page: bytes | None = None  # the metadata of every repository, instead of the true one
    headers: dict[str, str] = field(default_factory=dict)  # additional headers of every answer to a GET

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            fake_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(
        self, name: str, files: Mapping[str, bytes], *, tokens: Sequence[str] | None = None, gated: bool = False
    ) -> Repository:
        """Publish `files` as a new commit of `name`; `tokens` restricts access to these tokens."""
        content = repr((name, sorted(files.items()))).encode()
        self.repositories[name] = Repository(dict(files), tokens, gated, hashlib.sha1(content).hexdigest())
        self.known_tokens.update(tokens or ())
        return self.repositories[name]

    def count(self, method: str, ending: str) -> int:
        """The number of requests with `method` for paths that end with `ending`."""
        return sum(m == method and path.endswith(ending) for m, path in self.requests)


class _Handler(BaseHTTPRequestHandler):
    fake_hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.fake_hub.requests.append((self.command, path))
        time.sleep(self.fake_hub.delay)
        if self.fake_hub.failing:
            return self._refuse(self.fake_hub.failing, "")
        if path.startswith("/api/models/"):
            name, _, rest = path.removeprefix("/api/models/").partition("/tree/")
            name, _, revision = name.partition("/revision/")
            return self._page(name, rest or revision, tree=bool(rest))
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.rpartition("/")
        return self._file(name, revision, file)

    def _repository(self, name: str, revision: str, *, file: bool) -> Repository | None:
        """The repository, or None after an error response with the real hub's wording."""
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.fake_hub.known_tokens:
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        repository = self.fake_hub.repositories.get(name)
        hidden = repository is not None and repository.tokens is not None and token not in repository.tokens
        if repository is None or (hidden and not repository.gated):
            return self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if hidden and file:
            return self._refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        if revision not in ("", "main", repository.commit):
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        return repository

    def _page(self, name: str, revision: str, *, tree: bool) -> None:
        repository = self._repository(name, revision, file=False)
        if repository is None:
            return None
        sizes = {file: repository.sizes.get(file, len(content)) for file, content in repository.files.items()}
        if tree:
            entries = [{"type": "file", "path": f, "size": s, "oid": "0" * 40} for f, s in sizes.items()]
            return self._send(json.dumps(entries).encode())
        siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
        if self.fake_hub.page is not None:
            return self._send(self.fake_hub.page)
        page = {"id": name, "sha": repository.commit, "gated": repository.gated, "siblings": siblings}
        return self._send(json.dumps(page).encode())

    def _file(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name, revision, file=True)
        if repository is None:
            return None
        if file not in repository.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        content = repository.files[file]
        etag = hashlib.sha256(content).hexdigest()
        return self._send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.commit})

    def _send(self, content: bytes, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        more = self.fake_hub.headers if self.command == "GET" else {}
        for key, value in {**(headers or {}), **more, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fake_hub.drip is None or not self.path.count("/resolve/"):
            self.wfile.write(content)
            return
        with contextlib.suppress(OSError):  # the client has disconnected
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(self.fake_hub.drip)

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": message}, status)
