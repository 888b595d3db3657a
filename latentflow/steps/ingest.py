"""ingest: a source of captioned pictures becomes checked records, split by a hash of their ids."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, write_json, write_text
from latentflow.manifest import RecordsManifest, fingerprint
from latentflow.params import IngestInputs, IngestParams
from latentflow.progress import track
from latentflow.workspace import store

if TYPE_CHECKING:
    from latentflow.data.sources import Candidate, Source

VERSION = 1
log = logging.getLogger(__name__)


def run(inputs: IngestInputs, out: Path, force_rerun: str = "") -> RecordsManifest:
    """Reads the source, refuses what cannot be used (with reasons) and writes the records folder.

    Raises LatentflowError when the source is unusable or more than ``max_bad_fraction`` is refused.
    """
    from latentflow.data.records import QUARANTINE, RecordWriter, split_of
    from latentflow.data.sources import open_source
    from latentflow.data.validation import RefusedError, check

    params = inputs.ingest
    source = open_source(params)
    refused: list[dict[str, str]] = []
    with atomic_folder(out) as folder:
        writer = RecordWriter(folder)
        seen: set[str] = set()
        for candidate in track(_chosen(source, params.limit), "ingest", unit="records"):
            try:
                if candidate.id in seen:
                    raise RefusedError("the id (file_name) was there before; the first one is kept")
                checked = check(candidate, params.min_side)
            except RefusedError as reason:
                refused.append({"id": candidate.id, "reason": str(reason)})
                continue
            seen.add(candidate.id)
            writer.add(checked, split_of(candidate.id, params.validation_fraction, params.test_fraction))
        digest, counts = writer.finish()
        write_text(folder / QUARANTINE, "".join(json.dumps(row) + "\n" for row in refused))
        _verdict(params, refused, counts)
        manifest = RecordsManifest(
            digest=digest,
            fingerprint=fingerprint("ingest", VERSION, inputs, {"source": source.revision}, force_rerun),
            inputs={"source": source.revision},
            source=source.name,
            revision=source.revision,
            license=source.license,
            credit=source.credit,
            counts=counts,
            quarantined=len(refused),
        )
        write_json(folder / "metrics.json", {"records": sum(counts.values()), "refused": len(refused), **counts})
        manifest.write(folder)
    log.info(
        "%d records (%s), %d refused",
        sum(counts.values()),
        ", ".join(f"{n} {s}" for s, n in counts.items()),
        len(refused),
    )
    return manifest


def _chosen(source: "Source", limit: int) -> "Iterator[Candidate] | list[Candidate]":
    """All candidates in the order of their ids, or ``limit`` of them picked by a hash of the id."""
    ordered = sorted(source.candidates(), key=lambda candidate: candidate.id)
    if not limit:
        return ordered
    # Not the hash that splits: it would pick the records of one split first.
    picked = sorted(
        ordered, key=lambda candidate: hashlib.sha256(f"limit/{candidate.id}".encode("utf-8", "replace")).digest()
    )[:limit]
    return sorted(picked, key=lambda candidate: candidate.id)


def _verdict(params: IngestParams, refused: list[dict[str, str]], counts: dict[str, int]) -> None:
    total = sum(counts.values()) + len(refused)
    if total == 0:
        raise LatentflowError(f"ingest.source {params.source} holds no records.")
    share = len(refused) / total
    if share > params.max_bad_fraction:
        kept = store().parent / "quarantine.jsonl"
        write_text(kept, "".join(json.dumps(row) + "\n" for row in refused))
        examples = "; ".join(f"{row['id']}: {row['reason']}" for row in refused[:3])
        raise LatentflowError(
            f"{len(refused)} of {total} records were refused, above ingest.max_bad_fraction "
            f"{params.max_bad_fraction:g} ({examples}); the whole list is in {kept}."
        )
    for split, count in counts.items():
        if count == 0:
            raise LatentflowError(
                f"no record fell into the {split} split of {total - len(refused)}: "
                f"add records or raise ingest.{'limit' if split == 'train' else split + '_fraction'}."
            )
