"""Parameters, pictures and tars that the tests of the sources share."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from latentflow.data.sources import Candidate, Source, open_source
from latentflow.params import IngestParams, load

PARAMS = Path(__file__).parents[2] / "params.yaml"


def params_of(source: Path | str, **changes: Any) -> IngestParams:
    defaults = load(PARAMS).ingest.model_dump()
    return IngestParams.model_validate(defaults | {"source": str(source)} | changes)


def opened(source: Path | str, **changes: Any) -> Source:
    return open_source(params_of(source, **changes))


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def refusal(candidate: Candidate) -> str:
    """Why the candidate's medium cannot be read; empty if it can."""
    try:
        candidate.media.read()
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def regular(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member, data


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def tar_bytes(members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def shard(first: int, count: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Members of ``count`` samples, numbered from ``first``, each a picture of its own shade and a caption."""
    names = range(first, first + count)
    return [regular(f"{n:04d}.{end}", data) for n in names for end, data in (("png", png(n)), ("txt", b"no %d" % n))]
