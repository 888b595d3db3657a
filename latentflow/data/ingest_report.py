"""What ingest found, as one page: counts, samples by rule, sizes, what was refused and why, duplicates side by side.

It is made from the finished folder, so that nothing but a few rows is held while records stream through.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latentflow import html
from latentflow.data.histogram import chart
from latentflow.data.intake import Outcome, Repeated, sample_key
from latentflow.data.media import fit, still
from latentflow.data.records import QUARANTINE, Record, RecordSet
from latentflow.html import Entry, Section

SAMPLES, EXAMPLES = 24, 3
_SIDE = 192
_LONGEST = 160


def render(folder: Path, outcome: Outcome) -> str:
    """The page of a finished folder with its manifest; below 2 MB whatever the records are."""
    records = RecordSet.open(folder)
    manifest = records.manifest
    subtitle = f"{manifest.source} · {manifest.revision} · digest {manifest.digest[:12]}"
    parts = [
        html.cards(_cards(outcome)),
        html.warnings(_warnings(outcome, records)),
        html.pictures(_samples(records)),
        html.heading("Sizes and captions", "The outermost 1 % lie in the end bars."),
        _charts(records.arrow),
        *_refused(folder, outcome),
        *(html.pictures(section) for section in _duplicates(outcome, records)),
        html.heading("Source"),
        _source(records),
    ]
    credit = f"{manifest.source}, {manifest.license or 'licence unknown'}. {manifest.credit} Written by latentflow."
    return html.page("latentflow: records", subtitle, parts, credit)


def _cards(outcome: Outcome) -> list[tuple[str, str, str]]:
    duplicates = outcome.duplicates
    return [
        ("Records", f"{outcome.records:,}", ", ".join(f"{count:,} {split}" for split, count in outcome.counts.items())),
        ("Refused", f"{outcome.refused:,}", f"{outcome.refused / outcome.candidates:.2%} of {outcome.candidates:,}"),
        ("Exact duplicates", f"{duplicates.exact:,}", "equal bytes"),
        ("Near duplicates", f"{duplicates.near:,}", f"{duplicates.dropped:,} duplicates of both kinds left out"),
    ]


def _warnings(outcome: Outcome, records: RecordSet) -> list[str]:
    found = []
    if outcome.animated:
        found.append(f"{outcome.animated:,} pictures have several frames or pages; only the first is read.")
    if outcome.unusable_captions:
        found.append(f"{outcome.unusable_captions:,} unusable captions were left out of records that have others.")
    if not records.manifest.license and not pc.any(pc.not_equal(records.arrow["license"], "")).as_py():
        found.append("Neither the source nor any record names a licence.")
    return found


def _samples(records: RecordSet) -> Section:
    ids = (record_id for chunk in records.arrow["id"].chunks for record_id in chunk.to_pylist())
    keyed = ((sample_key(record_id), place) for place, record_id in enumerate(ids))
    chosen = [records.table[place] for _, place in heapq.nsmallest(SAMPLES, keyed)]
    note = "drawn by a hash of the id, not picked by eye; cut to the centred square as training with squares sees them"
    return Section("Samples", note, [_entry(records, record) for record in chosen])


def _entry(records: RecordSet, record: Record) -> Entry:
    return Entry(_short(record.caption), (records.image(record, _SIDE, _SIDE),), _remark(record))


def _remark(record: Record) -> str:
    clip = f", {record.frames} frames at {record.fps:g} per second" if record.kind == "video" else ""
    more = f", {len(record.captions)} captions" if len(record.captions) > 1 else ""
    return f"{_short(record.id)}, {record.width}×{record.height}{clip}{more}, {record.split}"


def _charts(arrow: pa.Table) -> str:
    width, height = (arrow[side].to_numpy().astype(np.float64) for side in ("width", "height"))
    lengths = pc.utf8_length(pc.list_flatten(arrow["captions"])).to_numpy().astype(np.float64)
    drawn = [
        chart("Shorter side", "pixels", np.minimum(width, height)),
        chart("Aspect ratio", "width : height", width / height),
        chart("Caption length", "characters", lengths),
    ]
    frames = arrow.filter(pc.equal(arrow["kind"], "video"))["frames"].to_numpy().astype(np.float64)
    if len(frames):
        drawn.append(chart("Length of clips", "frames", frames))
    return '<div class="charts">\n' + "\n".join(drawn) + "\n</div>"


def _refused(folder: Path, outcome: Outcome) -> list[str]:
    if not outcome.refused:
        return []
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for row in _lines(folder / QUARANTINE):
        counts[row["fault"]] += 1
        if len(shown := examples.setdefault(row["fault"], [])) < EXAMPLES:
            shown.append(f"<code>{escape(_short(row['id']))}</code>: {escape(_short(row['reason']))}")
    rows = [(escape(fault), f"{count:,}", "<br>".join(examples[fault])) for fault, count in counts.most_common()]
    note = f"Every refused record and its reason is in {QUARANTINE}."
    return [html.heading("Refused", note), html.table(rows, ("", "records", "the first of them"))]


def _duplicates(outcome: Outcome, records: RecordSet) -> Iterator[Section]:
    """Pairs of either kind, whether the one that repeats was kept or left out."""
    places = _places(records, [one.duplicate.of for one in outcome.repeated])
    note = "the earlier record left, the one that repeats it right; drawn by a hash of the id, not picked by eye"
    for kind in ("near", "exact"):
        chosen = [one for one in outcome.repeated if one.duplicate.kind == kind]
        entries = [_pair(one, records.table[places[one.duplicate.of]], records) for one in chosen]
        yield Section(f"{kind.capitalize()} duplicates", note, entries)


def _pair(repeated: Repeated, first: Record, records: RecordSet) -> Entry:
    duplicate, checked = repeated.duplicate, repeated.checked
    pictures = (
        records.image(first, _SIDE, _SIDE),
        Image.fromarray(fit(still(checked.media, checked.kind), _SIDE, _SIDE)[0]),
    )
    captions = dict.fromkeys((_short(first.caption), _short(checked.captions[0])))
    apart = f", {duplicate.distance} bits apart" if duplicate.kind == "near" else ""
    return Entry(" / ".join(captions), pictures, f"{_short(duplicate.of)} and {_short(duplicate.id)}{apart}")


def _places(records: RecordSet, ids: list[str]) -> dict[str, int]:
    """Where these ids are in the table."""
    found = pc.is_in(records.arrow["id"], value_set=pa.array(ids, pa.string()))
    places = np.flatnonzero(found.to_numpy()).tolist()
    return {records.table[place].id: place for place in places}


def _source(records: RecordSet) -> str:
    manifest = records.manifest
    rows = [("Name", manifest.source), ("Revision", manifest.revision), ("Digest of the records", manifest.digest)]
    rows += [("Licence", manifest.license or "unknown"), ("Credit", manifest.credit)]
    return html.table([(name, escape(value)) for name, value in rows])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _short(text: str) -> str:
    # Half a surrogate pair may stand in a refused id, and no file can hold it.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
