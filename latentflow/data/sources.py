"""What every source of captioned pictures hands to ingest, and which source a name stands for."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from latentflow.errors import LatentflowError
from latentflow.params import IngestParams


class Media(Protocol):
    """A picture or clip that is read later, maybe in another process: it pickles."""

    def read(self) -> bytes:
        """The bytes as they came. OSError or ValueError refuses the record, not the source."""


@dataclass(frozen=True)
class Candidate:
    """A record before it is checked: ``captions`` is whatever the source says, a text or a list of texts.

    ``conditions`` are the further columns that were asked for: media, or plain text.
    """

    id: str
    captions: Any
    media: Media
    conditions: dict[str, Media | str] = field(default_factory=dict)
    license: str = ""


class Source(Protocol):
    """A place that captioned pictures come from."""

    name: str
    revision: str
    license: str
    credit: str

    def candidates(self) -> Iterator[Candidate]:
        """All candidates in a fixed order."""


def open_source(params: IngestParams) -> Source:
    """The source that ``ingest.source`` names: ``emoji`` or a folder."""
    from latentflow.data.emoji import EmojiSource
    from latentflow.data.folder import FolderSource

    name = params.source
    if name == "emoji":
        return EmojiSource()
    if Path(name).is_dir():
        return FolderSource(Path(name))
    raise LatentflowError(
        f"ingest.source: {name!r} is neither `emoji` nor a folder; give a folder with metadata.jsonl or metadata.csv."
    )
