"""Why a candidate does not become a record: a kind of fault, and the sentence that a person reads."""

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """The kinds of refusal; docs and report list refused candidates by them."""

    ID = "unusable id"
    DUPLICATE_ID = "id seen before"
    CAPTION_MISSING = "caption missing"
    CAPTION_EMPTY = "caption empty"
    CAPTION_LONG = "caption too long"
    CAPTION_CHARACTERS = "caption with unusable characters"
    UNREADABLE = "media cannot be read"
    EMPTY = "media without bytes"
    UNKNOWN = "neither picture nor clip"
    BROKEN = "media cannot be decoded"
    BOMB = "too many pixels"
    SMALL = "too small"
    LARGE = "too large"
    NO_CLIP_READER = "clips cannot be read here"
    CONDITION = "unusable condition"


class RefusedError(Exception):
    """A candidate that does not become a record; the message is the reason."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


def refuse_large(width: int, height: int, max_side: int) -> None:
    """Refuses by the size in a header, before anything is decoded."""
    if max(width, height) > max_side:
        raise RefusedError(Fault.LARGE, f"it is {width}x{height} pixels, above ingest.max_side {max_side}")


@dataclass(frozen=True)
class Refusal:
    """A line of the quarantine."""

    id: str
    fault: Fault
    reason: str
