"""WebDataset tars: consecutive members of one key are a sample, ``train/001.jpg`` with ``train/001.txt``.

The key is the name up to the first dot after the last slash, the rest is the member's ending. The medium is the
member with the ending of a picture or clip, or ``<media_column>.<ending>``; the caption is ``.txt``, ``.caption`` or
a field of ``.json``; a condition is ``<name>.<ending>``, ``<name>.txt`` or a field of ``.json``. Nothing is unpacked.
"""

import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from latentflow.data.columns import CAPTION_NAMES, license_of, text_of, usual
from latentflow.data.locations import without_secrets
from latentflow.data.media_refs import MEDIA_SUFFIXES, RefusedMedia, check_size
from latentflow.data.sources import Candidate, Media
from latentflow.data.tar_files import OpenTar, Tar, revision_of
from latentflow.errors import LatentflowError
from latentflow.params import IngestParams

log = logging.getLogger(__name__)
TEXT_SUFFIXES = ("txt", "caption")
# Above what any caption or its JSON needs.
MAX_TEXT = 2**20


@dataclass
class Sample:
    """The members of one key by their endings; ``fault`` is why the sample cannot be used."""

    key: str
    media: dict[str, Media] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    fault: str = ""


class TarSource:
    """Samples of tars, one tar after the other; a record's id is the tar's name with the sample's key."""

    license = ""
    credit = ""

    def __init__(self, name: str, tars: list[Tar], params: IngestParams) -> None:
        if not tars:
            raise LatentflowError(f"ingest.source: {without_secrets(name)} holds no tars.")
        self.name = without_secrets(name)
        self.revision = revision_of(tars)
        self._tars = tars
        self._reader = SampleReader(params.media_column, params.caption_column, tuple(params.condition_columns))

    def candidates(self) -> Iterator[Candidate]:
        for tar in self._tars:
            for sample in samples(tar):
                yield self._reader.candidate(tar.stem, sample)


def samples(tar: Tar) -> Iterator[Sample]:
    """The samples of a tar in its order. Where it breaks off, the last one has that fault and the others are kept.

    Raises LatentflowError when the tar cannot be reached.
    """
    sample = Sample("")
    try:
        with tar.opened() as opened:
            for member in opened.members():
                key, ending = split_name(member.name)
                if not key or not ending or member.isdir():
                    continue
                if key != sample.key:
                    if sample.key:
                        yield sample
                    sample = Sample(key)
                _add(sample, ending, member, opened)
    except (tarfile.TarError, EOFError) as error:
        sample.fault = f"the tar {tar.name} breaks off at this sample ({error})"
        log.warning("the tar %s breaks off (%s); the samples before are kept", tar.name, error)
        sample.key = sample.key or "(no sample)"
    # Each store's client raises its own.
    except Exception as error:
        shown = without_secrets(f"{type(error).__name__}: {error}")
        raise LatentflowError(f"the tar {tar.name} cannot be read: {shown}; when it can, run ingest again.") from error
    if sample.key:
        yield sample


def split_name(name: str) -> tuple[str, str]:
    """Key and ending of a member's name; either is empty for names without a dot or that begin with one."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}".removeprefix("./") if stem else "", ending.lower()


def _add(sample: Sample, ending: str, member: tarfile.TarInfo, opened: OpenTar) -> None:
    try:
        _refuse_unsafe(member)
        if ending in sample.media or ending in sample.texts:
            raise ValueError(f"{member.name} is there twice")
        kind = ending.rpartition(".")[2]
        if kind in MEDIA_SUFFIXES:
            check_size(member.size)
            sample.media[ending] = opened.media(member)
        elif kind in (*TEXT_SUFFIXES, "json"):
            sample.texts[ending] = _text(member, opened)
            if ending == "json":
                sample.fields = _object(member.name, sample.texts[ending])
    except ValueError as error:
        sample.fault = sample.fault or str(error)


def _refuse_unsafe(member: tarfile.TarInfo) -> None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise ValueError(f"the member {member.name} leaves the tar")
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "no regular file"
        raise ValueError(f"the member {member.name} is {kind}")


def _text(member: tarfile.TarInfo, opened: OpenTar) -> str:
    if member.size > MAX_TEXT:
        raise ValueError(f"{member.name} has {member.size:,} bytes, above {MAX_TEXT:,}")
    try:
        return opened.read(member).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{member.name} is not UTF-8") from None


def _object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no JSON object")
    return value


@dataclass(frozen=True)
class SampleReader:
    """What of a sample is medium, caption and condition; empty names stand for the usual ones."""

    media: str
    caption: str
    conditions: tuple[str, ...]

    def candidate(self, tar: str, sample: Sample) -> Candidate:
        media = RefusedMedia(sample.fault) if sample.fault else self._media(sample)
        return Candidate(
            id=f"{tar}/{sample.key}",
            # A fault is a caption that passes, so that the medium's reason is the one that is told.
            captions=sample.fault or self._captions(sample),
            media=media,
            conditions={name: self._condition(sample, name) for name in self.conditions},
            license=license_of(sample.fields),
        )

    def _media(self, sample: Sample) -> Media:
        if self.media:
            found = _named(sample, self.media)
            return found or RefusedMedia(f"the sample has no {self.media} (found {_endings(sample)})")
        found_all = [media for ending, media in sample.media.items() if ending in MEDIA_SUFFIXES]
        if len(found_all) != 1:
            return RefusedMedia(f"the sample has {len(found_all)} pictures or clips, expected 1 ({_endings(sample)})")
        return found_all[0]

    def _captions(self, sample: Sample) -> Any:
        if self.caption:
            return _written(sample, self.caption)
        text = next((sample.texts[suffix] for suffix in TEXT_SUFFIXES if suffix in sample.texts), None)
        return text if text is not None else sample.fields.get(usual(CAPTION_NAMES, sample.fields))

    def _condition(self, sample: Sample, name: str) -> Media | str:
        if media := _named(sample, name):
            return media
        text = text_of(_written(sample, name))
        return text or RefusedMedia(f"the sample has no condition {name} (found {_endings(sample)})")


def _named(sample: Sample, name: str) -> Media | None:
    """The medium whose ending is ``name``, or ``name`` with that of a picture or clip."""
    wanted = name.lower()
    return next((m for ending, m in sample.media.items() if wanted in (ending, ending.rpartition(".")[0])), None)


def _written(sample: Sample, name: str) -> Any:
    """The text whose ending is ``name`` or ``<name>.txt``, or the JSON's field ``name``."""
    wanted = name.lower()
    for ending in (wanted, *(f"{wanted}.{suffix}" for suffix in TEXT_SUFFIXES)):
        if ending in sample.texts and ending != "json":
            return sample.texts[ending]
    return sample.fields.get(name)


def _endings(sample: Sample) -> str:
    return ", ".join([*sample.media, *sample.texts]) or "nothing"
