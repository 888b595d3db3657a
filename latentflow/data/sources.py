"""What every source of captioned pictures hands to ingest, and which source a name stands for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from latentflow.errors import LatentflowError


@dataclass(frozen=True)
class Candidate:
    """A record before it is checked: ``caption`` is whatever the source says, ``read`` gives the picture's bytes.

    ``read`` may raise OSError or ValueError; that refuses the record, not the source.
    """

    id: str
    caption: Any
    read: Callable[[], bytes]


class Source(Protocol):
    """A place that captioned pictures come from."""

    name: str
    revision: str
    license: str
    credit: str

    def candidates(self) -> Iterator[Candidate]:
        """All candidates in a fixed order."""


def open_source(name: str) -> Source:
    """The source that ``ingest.source`` names: ``emoji`` or a folder."""
    from latentflow.data.emoji import EmojiSource
    from latentflow.data.folder import FolderSource

    if name == "emoji":
        return EmojiSource()
    if Path(name).is_dir():
        return FolderSource(Path(name))
    raise LatentflowError(
        f"ingest.source: {name!r} is neither `emoji` nor a folder; give a folder with metadata.jsonl or metadata.csv."
    )
