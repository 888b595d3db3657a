"""What an encode run would do and why, from the plan and the work store alone."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentflow.data.packs import missing
from latentflow.data.plan import EncodePlan, Job, TextJob
from latentflow.encoders.filling import Encoders
from latentflow.encoders.rows import MADE_FROM


@dataclass
class _Tally:
    shards: int = 0
    rows: int = 0
    missing: int = 0


def explained(encoders: Encoders, plan: EncodePlan) -> list[str]:
    """Sentences: per kind how many rows are in the work store and how many have to be encoded, and the reason."""
    pictures, images, captions = encoders.pictures, encoders.images, encoders.captions
    return [
        *_kind("latents", encoders, plan.latents, pictures.folder, pictures.made_from),
        *_kind("images", encoders, plan.images, images.folder, images.made_from),
        *_kind("text", encoders, plan.text, captions.folder, captions.made_from),
    ]


def _kind(name: str, encoders: Encoders, jobs: Sequence[Job], folder: Path, made_from: dict[str, Any]) -> Iterator[str]:
    by_size: dict[str, _Tally] = {}
    for job in jobs:
        rows = encoders.of(job)
        keys = rows.keys(job)
        tally = by_size.setdefault("" if isinstance(job, TextJob) else job.size, _Tally())
        tally.shards += 1
        tally.rows += len(set(keys))
        tally.missing += len(missing(keys, rows.packs(job).places(keys)))
    for size, tally in by_size.items():
        what = f"{name} {size}".strip()
        if not tally.missing:
            yield f"{what}: all {tally.rows} rows are in the work store; nothing to encode."
        else:
            why = _why(folder, size, made_from, known=tally.rows - tally.missing)
            yield f"{what}: {tally.missing} of {tally.rows} rows in {tally.shards} shards to encode, because {why}."


def _why(folder: Path, size: str, made_from: dict[str, Any], known: int) -> str:
    if known:
        return "they are new to these settings; the others are in the work store"
    if (folder / MADE_FROM).is_file():
        return f"nothing was encoded at the size {size} yet" if size else "none of these captions was encoded yet"
    earlier = [json.loads(path.read_text(encoding="utf-8")) for path in folder.parent.glob(f"*/{MADE_FROM}")]
    if not earlier:
        return "the work store is empty"
    differing = min((_differing(one, made_from) for one in earlier), key=len)
    changes = ", ".join(f"{field} was {_short(before)} and is {_short(now)}" for field, before, now in differing)
    return f"nothing was encoded with these settings ({changes})"


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    fields = sorted({*before, *now})
    return [(field, before.get(field), now.get(field)) for field in fields if before.get(field) != now.get(field)]


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
