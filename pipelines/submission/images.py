"""The digest behind an image's tag, asked of its registry (the HTTP API v2 that all of them speak)."""

import base64
import binascii
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from latentflow.errors import LatentflowError

_ACCEPTED = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_TIMEOUT = urllib3.Timeout(connect=5, read=20)


class ImageError(LatentflowError):
    """An image's name cannot be turned into a digest."""


@dataclass(frozen=True)
class Image:
    """An image as it is given to a run, and why it has no digest if it has none."""

    name: str
    problem: str = ""

    @property
    def warning(self) -> str:
        """What a name without a digest means."""
        return (
            f"{self.name} is used as it is ({self.problem}): Kubeflow's cache knows an image by its name only, so what "
            "ran under this name before is not run again after a push; give every build a new tag, or set force_rerun."
        )


@dataclass(frozen=True)
class Reference:
    """The parts of an image's name, such as ``registry.example/team/latentflow-cpu:0.1.0``."""

    registry: str
    repository: str
    tag: str

    @classmethod
    def parse(cls, name: str) -> "Reference":
        """Raises ImageError when the name is none or names no registry."""
        first, slash, rest = name.partition("/")
        if not slash or not ("." in first or ":" in first or first == "localhost"):
            raise ImageError("the name has no registry in front, so only nodes that hold the image can run it")
        repository, _, tag = rest.partition(":")
        if not _NAME.fullmatch(repository) or not re.fullmatch(r"\w[\w.-]{0,127}|", tag):
            raise ImageError("this is no name of an image; write registry/repository:tag")
        return cls(first, repository, tag or "latest")

    @property
    def url(self) -> str:
        """The address of the manifest."""
        host = self.registry.rsplit(":", 1)[0] if self.registry.count(":") == 1 else self.registry
        scheme = "http" if host in _LOCAL else "https"
        return f"{scheme}://{self.registry}/v2/{self.repository}/manifests/{self.tag}"


def pinned(name: str) -> Image:
    """The image by its digest, ``repository@sha256:...``; by its tag, with the reason, when that cannot be had."""
    if _DIGEST.fullmatch(name.partition("@")[2]):
        return Image(name)
    try:
        reference = Reference.parse(name)
        return Image(f"{reference.registry}/{reference.repository}@{digest(reference)}")
    except ImageError as error:
        return Image(name, str(error))


def digest(reference: Reference) -> str:
    """``sha256:...`` of the manifest, or of the index of a multi-platform image. Raises ImageError."""
    pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=urllib3.Retry(2, redirect=3))
    headers = {"Accept": _ACCEPTED}
    try:
        answer = pool.request("HEAD", reference.url, headers=headers)
        if answer.status == 401:
            headers["Authorization"] = _authorization(pool, reference, answer.headers.get("WWW-Authenticate", ""))
            answer = pool.request("HEAD", reference.url, headers=headers)
        stated = answer.headers.get("Docker-Content-Digest", "")
        if answer.status == 200 and not _DIGEST.fullmatch(stated):
            answer = pool.request("GET", reference.url, headers=headers)
            stated = f"sha256:{hashlib.sha256(answer.data).hexdigest()}"
    except urllib3.exceptions.HTTPError as error:
        raise ImageError(f"{reference.registry} does not answer: {_reason(error)}") from None
    if answer.status in (401, 403):
        raise ImageError(f"{reference.registry} refuses: run `docker login {reference.registry}`")
    if answer.status == 404:
        raise ImageError(f"{reference.registry} has no {reference.repository}:{reference.tag}; push it first")
    if answer.status != 200:
        raise ImageError(f"{reference.registry} answered {answer.status}")
    return str(stated)


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).rsplit(": ", 1)[-1] or type(reason).__name__


def _authorization(pool: urllib3.PoolManager, reference: Reference, challenge: str) -> str:
    """The Authorization header that a 401 asks for: Basic at once, or Bearer with a token from its realm."""
    scheme, _, rest = challenge.partition(" ")
    credentials = _credentials(reference.registry)
    basic = f"Basic {base64.b64encode(credentials.encode()).decode()}" if credentials else ""
    if scheme.lower() != "bearer":
        return basic
    asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    realm = urlsplit(asked.get("realm", ""))
    if realm.scheme != "https" and realm.hostname not in ("localhost", "127.0.0.1"):
        raise ImageError(f"{reference.registry} sends to a place without https for its token")
    query = urlencode({key: value for key, value in asked.items() if key in ("service", "scope")})
    answer = pool.request("GET", f"{asked['realm']}?{query}", headers={"Authorization": basic} if basic else {})
    if answer.status != 200:
        raise ImageError(f"{reference.registry} refuses: run `docker login {reference.registry}`")
    token: dict[str, str] = answer.json()
    return f"Bearer {token.get('token') or token.get('access_token', '')}"


def _credentials(registry: str) -> str:
    """``user:password`` of a registry from Docker's settings or its credential helper; empty if there are none."""
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    if helper := settings.get("credHelpers", {}).get(registry) or settings.get("credsStore"):
        return _from_helper(f"docker-credential-{helper}", registry)
    stored = settings.get("auths", {}).get(registry, {}).get("auth", "")
    try:
        return base64.b64decode(stored).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _from_helper(program: str, registry: str) -> str:
    if shutil.which(program) is None:
        return ""
    try:
        done = subprocess.run([program, "get"], input=registry, capture_output=True, text=True, timeout=20, check=True)
        found = json.loads(done.stdout)
        return f"{found['Username']}:{found['Secret']}"
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return ""
