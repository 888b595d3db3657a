"""What every source of captioned media hands to ingest, and which source the parameters name."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from latentflow.errors import LatentflowError
from latentflow.params import IngestParams, source_kind


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
    """A place that captioned media come from; ``revision`` pins what it holds."""

    name: str
    revision: str
    license: str
    credit: str

    def candidates(self) -> Iterator[Candidate]:
        """All candidates in a fixed order, in constant memory."""


FORMS = (
    "a folder with metadata.jsonl, metadata.csv or metadata.parquet, a folder of tars, a dataset that was saved to "
    "disk, tars (train-{000..099}.tar, s3://bucket/*.tar), hf:owner/name, or dvc:repository with ingest.path"
)


def open_source(params: IngestParams) -> Source:
    """The source that ``ingest.source`` names, checked as far as that goes before its media are read."""
    from latentflow.data.dvc_repository import DvcSource
    from latentflow.data.emoji import EmojiSource
    from latentflow.data.huggingface import open_hub

    kind, place = source_kind(params.source), params.source.partition(":")[2]
    if kind == "hf":
        return open_hub(place, params)
    if kind == "dvc":
        return DvcSource(place, params)
    return EmojiSource() if params.source == "emoji" else open_place(params.source, params)


def pin(params: IngestParams) -> str:
    """The revision that ``ingest.source`` has now, after the checks that need none of its media.

    It is a commit's SHA for hf: and dvc: sources, which ``ingest.revision`` then takes, and else a digest. Raises
    LatentflowError when the source cannot be reached or is none.
    """
    from latentflow.data.dvc_repository import resolve

    if source_kind(params.source) == "dvc":
        return resolve(params.source.partition(":")[2], params)
    return open_source(params).revision


def open_place(place: str, params: IngestParams) -> Source:
    """The source in a local folder, a local tar or a pattern or URL of tars."""
    from latentflow.data.folder import FolderSource
    from latentflow.data.huggingface import is_saved, open_saved
    from latentflow.data.rows import FILES
    from latentflow.data.tar_files import SUFFIXES, find_tars, tars_in
    from latentflow.data.webdataset import TarSource

    folder = Path(place)
    if folder.is_dir():
        if is_saved(folder):
            return open_saved(folder, params)
        has_table = any((folder / name).is_file() for name in FILES)
        tars = [] if has_table else tars_in(folder)
        return TarSource(folder.name, tars, params) if tars else FolderSource(folder, params)
    if "://" in place or place.endswith(SUFFIXES):
        return TarSource(place, find_tars(place), params)
    raise LatentflowError(f"ingest.source: {place!r} is neither `emoji` nor a folder, nor one of: {FORMS}.")
