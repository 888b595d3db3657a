"""A model hub on this machine: one that refuses everything, or one that holds a folder as a repository."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

REPOSITORY, SHA = "owner/name", "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def refusing(patch: pytest.MonkeyPatch, cache: Path, status: int, code: str) -> Iterator[None]:
    """Answers every request so."""

    class Answer(_Quiet):
        def do_GET(self) -> None:
            self.answer(status, headers={"X-Error-Code": code})

        do_HEAD = do_GET

    with _serving(patch, cache, Answer):
        yield


@contextmanager
def holding(patch: pytest.MonkeyPatch, cache: Path, folder: Path) -> Iterator[list[str]]:
    """Holds ``folder`` as owner/name at one revision; yields the files that were asked for."""
    given: list[str] = []

    class Answer(_Quiet):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{REPOSITORY}/"):
                listed = _tree(folder) if "/tree/" in path else _repository(folder)
                self.answer(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
                return
            file = folder / path.removeprefix(f"/{REPOSITORY}/resolve/{SHA}/")
            if not file.is_file():
                self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
                return
            data = file.read_bytes()
            if self.command == "GET":
                given.append(file.relative_to(folder).as_posix())
            self.answer(200, data, {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

        do_HEAD = do_GET

    with _serving(patch, cache, Answer):
        yield given


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _repository(folder: Path) -> dict[str, Any]:
    names = [file.relative_to(folder).as_posix() for file in _files(folder)]
    return {"id": REPOSITORY, "sha": SHA, "siblings": [{"rfilename": name} for name in names]}


def _tree(folder: Path) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": file.relative_to(folder).as_posix(), "size": file.stat().st_size, "oid": str(number)}
        for number, file in enumerate(_files(folder))
    ]


class _Quiet(BaseHTTPRequestHandler):
    def answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def _serving(patch: pytest.MonkeyPatch, cache: Path, answer: type[BaseHTTPRequestHandler]) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), answer)
    Thread(target=server.serve_forever, daemon=True).start()
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    address = f"http://127.0.0.1:{server.server_port}"
    patch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
