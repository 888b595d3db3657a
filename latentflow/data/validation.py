"""Which candidates become records: every refusal has a reason that a person understands."""

import io
import warnings
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from latentflow.data.sources import Candidate

MAX_CAPTION = 10_000


class RefusedError(Exception):
    """A candidate that does not become a record; the message is the reason."""


@dataclass(frozen=True)
class Checked:
    """A candidate that passed: its caption without outer space, its picture's bytes and size in pixels."""

    id: str
    caption: str
    picture: bytes
    width: int
    height: int


def check(candidate: Candidate, min_side: int) -> Checked:
    """Checks caption and picture. Raises RefusedError with the reason."""
    if not _encodes(candidate.id):
        raise RefusedError("the id (file_name) is not valid Unicode")
    caption = _caption(candidate.captions)
    try:
        picture = candidate.media.read()
    except (OSError, ValueError) as error:
        raise RefusedError(str(error)) from None
    width, height = _size(picture)
    if min(width, height) < min_side:
        raise RefusedError(f"the picture is {width}x{height}, below ingest.min_side {min_side}")
    return Checked(candidate.id, caption, picture, width, height)


def _caption(value: Any) -> str:
    if not isinstance(value, str):
        raise RefusedError(f"the caption is not text but {type(value).__name__}")
    caption = value.strip()
    if not caption:
        raise RefusedError("the caption is empty")
    if len(caption) > MAX_CAPTION:
        raise RefusedError(f"the caption has {len(caption)} characters, above {MAX_CAPTION}")
    if not _encodes(caption):
        raise RefusedError("the caption is not valid Unicode")
    if "\x00" in caption:
        raise RefusedError("the caption holds a NUL character")
    return caption


def _encodes(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _size(picture: bytes) -> tuple[int, int]:
    if not picture:
        raise RefusedError("the picture has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(picture)) as image:
                image.load()
                return image.size
    except UnidentifiedImageError:
        raise RefusedError("the picture is of no format that Pillow reads") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RefusedError("the picture is too large to decode safely") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise RefusedError(f"the picture cannot be decoded: {error}") from None
