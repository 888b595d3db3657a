"""Digests of images: from a registry that wants a token, and from Docker's own registry program."""

import base64
import hashlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import pytest

from pipelines.submission.images import Image, ImageError, Reference, pinned

MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []})
DIGEST = f"sha256:{hashlib.sha256(MANIFEST.encode()).hexdigest()}"
LOGIN = base64.b64encode(b"me:secret").decode()


@dataclass
class Registry:
    """A registry that gives a manifest for a token, and a token for a user, as the large ones do."""

    states_digest: bool = True
    basic: bool = False
    realm: str = ""
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    made = Registry()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            given = self.headers.get("Authorization", "")
            made.seen.append((self.command, self.path, given))
            if self.path.startswith("/token"):
                allowed = given == f"Basic {LOGIN}" and "scope=repository%3Ateam%2Fimage%3Apull" in self.path
                return self._write(200 if allowed else 401, {}, json.dumps({"token": "t0"}))
            if given != (f"Basic {LOGIN}" if made.basic else "Bearer t0"):
                realm = made.realm or f"http://{made.address}/token"
                wanted = f'Bearer realm="{realm}",service="here",scope="repository:team/image:pull"'
                return self._write(401, {"WWW-Authenticate": 'Basic realm="here"' if made.basic else wanted}, "")
            if self.path != "/v2/team/image/manifests/1.0":
                return self._write(404, {}, "")
            stated = {"Docker-Content-Digest": DIGEST} if made.states_digest else {}
            return self._write(200, stated, MANIFEST)

        do_GET = do_HEAD = _serve

        def _write(self, status: int, headers: dict[str, str], text: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing on the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.address = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def log_in(folder: Path, registry: Registry) -> None:
    """What `docker login` writes."""
    (folder / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": LOGIN}}}))


@pytest.mark.parametrize("states_digest", [True, False])
@pytest.mark.parametrize("basic", [True, False])
def test_a_tag_becomes_a_digest(registry: Registry, tmp_path: Path, states_digest: bool, basic: bool) -> None:
    registry.states_digest, registry.basic = states_digest, basic
    log_in(tmp_path, registry)
    assert pinned(f"{registry.address}/team/image:1.0") == Image(f"{registry.address}/team/image@{DIGEST}")
    # The bytes are asked for only where the registry does not state their digest.
    assert ("GET" in [method for method, path, _ in registry.seen if path.startswith("/v2")]) is not states_digest


def test_a_credential_helper_is_asked(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "mine"}))
    helper = tmp_path / "docker-credential-mine"
    helper.write_text('#!/bin/sh\nread server\necho \'{"Username": "me", "Secret": "secret"}\'\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert pinned(f"{registry.address}/team/image:1.0").problem == ""
    helper.write_text("#!/bin/sh\nexit 1\n")
    assert "docker login" in pinned(f"{registry.address}/team/image:1.0").problem


def test_what_is_not_there_or_not_allowed_is_a_warning(registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.address}/team/image:1.0"
    assert pinned(name) == Image(name, f"{registry.address} refuses: run `docker login {registry.address}`")
    assert "give every build a new tag, or set force_rerun" in pinned(name).warning
    log_in(tmp_path, registry)
    assert "has no team/image:2.0; push it first" in pinned(f"{registry.address}/team/image:2.0").problem


def test_a_password_is_not_sent_where_anybody_can_read_it(registry: Registry, tmp_path: Path) -> None:
    log_in(tmp_path, registry)
    registry.realm = "http://elsewhere.example/token"
    assert "without https" in pinned(f"{registry.address}/team/image:1.0").problem
    assert not any(LOGIN in given for _, _, given in registry.seen)


def test_a_digest_is_kept_and_a_bare_name_is_not_looked_up() -> None:
    name = f"registry.example/image@sha256:{'0' * 64}"
    assert pinned(name) == Image(name)
    assert "no registry in front" in pinned("latentflow-cpu:0.1.0").problem
    assert "no registry in front" in pinned("team/latentflow-cpu:0.1.0").problem


def test_names_are_read_as_docker_reads_them() -> None:
    assert Reference.parse("localhost/x") == Reference("localhost", "x", "latest")
    assert Reference.parse("r.example:5000/a/b:1").url == "https://r.example:5000/v2/a/b/manifests/1"
    assert Reference.parse("localhost:5000/b:1").url == "http://localhost:5000/v2/b/manifests/1"
    for wrong in ("r.example/UPPER:1", "r.example/a:b:c", "r.example/", "r.example/a:-x"):
        with pytest.raises(ImageError, match="no name of an image"):
            Reference.parse(wrong)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="needs the program docker-registry")
def test_dockers_own_registry_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = tmp_path / "registry.yml"
    settings.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\nhttp: {{addr: {address}}}\n"
    )
    process = subprocess.Popen(["docker-registry", "serve", str(settings)], stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://{address}/v2/")
        pushed = _push(address, b"{}")
        assert pinned(f"{address}/team/image:1.0") == Image(f"{address}/team/image@{pushed}")
        assert "has no team/image:2.0" in pinned(f"{address}/team/image:2.0").problem
    finally:
        process.terminate()
        process.wait(timeout=20)


def _push(address: str, config: bytes) -> str:
    """Pushes an image without layers as team/image:1.0; returns the digest that the registry states."""
    blob = f"sha256:{hashlib.sha256(config).hexdigest()}"
    start = _send("POST", f"http://{address}/v2/team/image/blobs/uploads/", b"", "application/octet-stream")
    place = start["Location"]
    _send("PUT", f"{place}{'&' if '?' in place else '?'}digest={blob}", config, "application/octet-stream")
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    about = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config), "digest": blob}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": about, "layers": []}).encode()
    return _send("PUT", f"http://{address}/v2/team/image/manifests/1.0", manifest, kind)["Docker-Content-Digest"]


def _send(method: str, url: str, data: bytes, kind: str) -> dict[str, str]:
    request = urllib.request.Request(url, data, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(answer.headers)


def _wait_for(url: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except URLError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{url} does not answer")
