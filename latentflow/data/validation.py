"""Which candidates become records: every refusal has a reason that a person understands."""

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

from latentflow.data.duplicates import Look, look
from latentflow.data.media import probe
from latentflow.data.refusal import Fault, RefusedError
from latentflow.data.sources import Candidate, Media

MAX_CAPTION = 10_000
# They turn the order in which text is shown, so a caption can read otherwise than it is; nothing is said by them.
_BIDI_CONTROLS = re.compile("[\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Limits:
    """Sides in pixels that a picture or clip may have, the shorter and the longer."""

    min_side: int
    max_side: int


@dataclass(frozen=True)
class CheckedCondition:
    """A further column: plain text, or media with their digest."""

    name: str
    text: str = ""
    media: bytes | None = None
    sha256: bytes = b""


@dataclass(frozen=True)
class Checked:
    """A candidate that passed: its usable captions without outer space, its bytes and what decoding them found.

    ``look`` is None for a nearly constant picture. ``unusable_captions`` counts those left out beside usable ones.
    """

    id: str
    captions: tuple[str, ...]
    media: bytes
    sha256: bytes
    kind: str
    width: int
    height: int
    frames: int
    fps: float
    look: Look | None
    license: str = ""
    conditions: tuple[CheckedCondition, ...] = ()
    animated: bool = False
    unusable_captions: int = 0


def check(candidate: Candidate, limits: Limits) -> Checked:
    """Checks id, captions, media and conditions. Raises RefusedError with the reason."""
    if not candidate.id or not _encodes(candidate.id):
        raise RefusedError(Fault.ID, "the id (file_name) is empty or not valid Unicode")
    captions, unusable = _captions(candidate.captions)
    data = _read(candidate.media)
    found = probe(data, limits.max_side)
    if min(found.width, found.height) < limits.min_side:
        raise RefusedError(
            Fault.SMALL, f"it is {found.width}x{found.height} pixels, below ingest.min_side {limits.min_side}"
        )
    return Checked(
        id=candidate.id,
        captions=captions,
        media=data,
        sha256=hashlib.sha256(data).digest(),
        kind=found.kind,
        width=found.width,
        height=found.height,
        frames=found.frames,
        fps=found.fps,
        look=look(found.small),
        license=candidate.license,
        conditions=tuple(_condition(name, value, limits) for name, value in candidate.conditions.items()),
        animated=found.animated,
        unusable_captions=unusable,
    )


def _read(media: Media) -> bytes:
    try:
        return media.read()
    except (OSError, ValueError) as error:
        raise RefusedError(Fault.UNREADABLE, str(error) or type(error).__name__) from None


def _captions(value: Any) -> tuple[tuple[str, ...], int]:
    """The usable captions and how many others there were; refused only when none is usable."""
    if not isinstance(value, list | tuple):
        return (_caption(value),), 0
    usable, faults = [], []
    for one in value:
        try:
            usable.append(_caption(one))
        except RefusedError as error:
            faults.append(error)
    if usable:
        return tuple(usable), len(faults)
    if not faults:
        raise RefusedError(Fault.CAPTION_MISSING, "the list of captions is empty")
    raise RefusedError(faults[0].fault, f"none of {len(faults)} captions can be used; the first: {faults[0]}")


def _caption(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RefusedError(Fault.CAPTION_MISSING, "the caption is missing")
    if not isinstance(value, str):
        raise RefusedError(Fault.CAPTION_MISSING, f"the caption is not text but {type(value).__name__}")
    caption = _text(value, "caption")
    if not caption:
        raise RefusedError(Fault.CAPTION_EMPTY, "the caption is empty")
    return caption


def _text(value: str, what: str) -> str:
    """Text without outer space and direction marks."""
    if len(value) > MAX_CAPTION:
        raise RefusedError(Fault.CAPTION_LONG, f"the {what} has {len(value):,} characters, above {MAX_CAPTION:,}")
    if not _encodes(value):
        raise RefusedError(Fault.CAPTION_CHARACTERS, f"the {what} is not valid Unicode")
    if "\x00" in value:
        raise RefusedError(Fault.CAPTION_CHARACTERS, f"the {what} holds a NUL character")
    return _BIDI_CONTROLS.sub("", value).strip()


def _condition(name: str, value: Media | str, limits: Limits) -> CheckedCondition:
    try:
        if isinstance(value, str):
            return CheckedCondition(name, text=_text(value, "text"))
        data = _read(value)
        probe(data, limits.max_side)
    except RefusedError as error:
        raise RefusedError(Fault.CONDITION, f"condition {name}: {error}") from None
    return CheckedCondition(name, media=data, sha256=hashlib.sha256(data).digest())


def _encodes(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
