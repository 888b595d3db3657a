"""Which columns of a table hold the medium, the caption and the conditions, and what a condition's value stands for."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from latentflow.data.media_refs import MEDIA_SUFFIXES, FileMedia, RefusedMedia
from latentflow.data.sources import Media
from latentflow.errors import LatentflowError
from latentflow.params import IngestParams

MEDIA_NAMES = ("file_name", "image", "video")
CAPTION_NAMES = ("text", "prompt", "caption")


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read."""

    media: str
    caption: str
    conditions: tuple[str, ...]

    @classmethod
    def choose(cls, present: Collection[str], params: IngestParams, place: str) -> Self:
        """The columns that ``params`` name, else the usual ones. Raises LatentflowError with ``place`` if one lacks."""
        chosen = cls(
            media=params.media_column or usual(MEDIA_NAMES, present),
            caption=params.caption_column or usual(CAPTION_NAMES, present),
            conditions=tuple(params.condition_columns),
        )
        chosen.check(present, place)
        return chosen

    def check(self, present: Collection[str], place: str) -> None:
        """Raises LatentflowError that names ``place`` and the columns that are not ``present``."""
        missing = [name for name in (self.media, self.caption, *self.conditions) if name not in present]
        if missing:
            raise LatentflowError(
                f"{place}: no column {' or '.join(missing)} (found {', '.join(map(str, present)) or 'none'}); mend the "
                f"row, or name other columns with ingest.media_column, caption_column and condition_columns."
            )


def usual(names: tuple[str, ...], present: Collection[str]) -> str:
    """The first of the usual names that is there, or all of them as one name that is not."""
    return next((name for name in names if name in present), "|".join(names))


def license_of(row: Mapping[str, Any]) -> str:
    """What the row's own ``license`` column says, if it has one."""
    said = row.get("license")
    return said if isinstance(said, str) else ""


def condition_of(name: str, value: Any, root: Path) -> Media | str:
    """A condition's text, or the file below ``root`` that it names.

    What ends as a picture or clip does is one even if it is missing: a lost control picture refuses its record
    and does not become a text.
    """
    text = text_of(value)
    if not text:
        return RefusedMedia(f"the condition {name} is empty or neither text nor a path")
    return FileMedia(root, text) if _has_media_suffix(text) or _is_file(root / text) else text


def text_of(value: Any) -> str:
    """A text that is not blank, or a number in digits; empty for anything else."""
    if isinstance(value, bool | int | float):
        return str(value)
    return value if isinstance(value, str) and value.strip() else ""


def _has_media_suffix(name: str) -> bool:
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and suffix.lower() in MEDIA_SUFFIXES


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False
