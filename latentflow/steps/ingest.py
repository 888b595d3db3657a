"""ingest: a source of captioned media becomes checked records, split by a hash of their ids."""

import hashlib
import heapq
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.errors import LatentflowError
from latentflow.files import atomic_file, atomic_folder, write_json, write_text
from latentflow.manifest import RecordsManifest, fingerprint
from latentflow.params import IngestInputs, IngestParams
from latentflow.progress import track
from latentflow.workspace import store

if TYPE_CHECKING:
    from latentflow.data.intake import Outcome
    from latentflow.data.sources import Candidate, Source

VERSION = 2
log = logging.getLogger(__name__)


def run(inputs: IngestInputs, out: Path, force_rerun: str = "") -> RecordsManifest:
    """Reads the source, refuses what cannot be used (with reasons) and writes the records folder and its report.

    Raises LatentflowError when the source is unusable or more than ``max_bad_fraction`` is refused.
    """
    from latentflow.data import ingest_report
    from latentflow.data.records import METRICS, REPORT
    from latentflow.data.sources import open_source

    source = open_source(inputs.ingest)
    with atomic_folder(out) as folder:
        outcome = fill(folder, source, inputs.ingest)
        _verdict(inputs.ingest, outcome, folder)
        manifest = _manifest(inputs, source, outcome, force_rerun)
        manifest.write(folder)
        write_json(folder / METRICS, _metrics(outcome))
        write_text(folder / REPORT, ingest_report.render(folder, outcome))
    log.info("%s, %d refused, duplicates: %s", _by_split(outcome), outcome.refused, outcome.duplicates)
    return manifest


def fill(folder: Path, source: "Source", params: IngestParams) -> "Outcome":
    """Checks all of a source's candidates, in worker processes, and writes table, media, quarantine and duplicates."""
    from latentflow.data.inspection import Inspectors
    from latentflow.data.intake import intake
    from latentflow.data.validation import Limits

    limits = Limits(params.min_side, params.max_side)
    with Inspectors(params.workers, limits) as inspectors, intake(folder, params) as records:
        results = inspectors.run(_chosen(source, params.limit))
        for result in track(results, "ingest", total=params.limit or None, unit="records"):
            records.take(result)
        return records.outcome()


def _chosen(source: "Source", limit: int) -> "Iterator[Candidate]":
    """All candidates in the source's order, or the ``limit`` of smallest hash; for these the source is read twice."""
    if not limit:
        yield from source.candidates()
        return
    # Not the hash that splits: it would pick the records of one split first.
    hashes = (
        (hashlib.sha256(f"limit/{candidate.id}".encode("utf-8", "replace")).digest(), place)
        for place, candidate in enumerate(source.candidates())
    )
    places = {place for _, place in heapq.nsmallest(limit, track(hashes, "ingest: choosing", unit="records"))}
    yield from (candidate for place, candidate in enumerate(source.candidates()) if place in places)


def _verdict(params: IngestParams, outcome: "Outcome", folder: Path) -> None:
    from latentflow.data.records import QUARANTINE

    if outcome.candidates == 0:
        raise LatentflowError(f"ingest.source {params.source} holds no records.")
    if outcome.refused / outcome.candidates > params.max_bad_fraction:
        kept = store().parent / QUARANTINE
        with atomic_file(kept) as temporary:
            shutil.copyfile(folder / QUARANTINE, temporary)
        examples = "; ".join(f"{one.id}: {one.reason}" for one in outcome.examples)
        raise LatentflowError(
            f"{outcome.refused} of {outcome.candidates} records were refused, above ingest.max_bad_fraction "
            f"{params.max_bad_fraction:g} ({examples}); the whole list is in {kept}."
        )
    for split, count in outcome.counts.items():
        if count == 0:
            raise LatentflowError(
                f"no record fell into the {split} split of {outcome.records}: "
                f"add records or raise ingest.{'limit' if split == 'train' else split + '_fraction'}."
            )


def _manifest(inputs: IngestInputs, source: "Source", outcome: "Outcome", force_rerun: str) -> RecordsManifest:
    return RecordsManifest(
        digest=outcome.digest,
        fingerprint=fingerprint("ingest", VERSION, inputs, {"source": source.revision}, force_rerun),
        inputs={"source": source.revision},
        source=source.name,
        revision=source.revision,
        license=source.license,
        credit=source.credit,
        counts=outcome.counts,
        quarantined=outcome.refused,
        duplicates=outcome.duplicates,
    )


def _metrics(outcome: "Outcome") -> dict[str, int]:
    duplicates = {f"duplicates_{name}": count for name, count in outcome.duplicates.model_dump().items()}
    return {"records": outcome.records, "refused": outcome.refused, **outcome.counts, **duplicates}


def _by_split(outcome: "Outcome") -> str:
    return f"{outcome.records} records ({', '.join(f'{count} {split}' for split, count in outcome.counts.items())})"
