"""Where a checked candidate goes: into the records, the quarantine, the list of duplicates."""

import hashlib
import heapq
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from latentflow.data.duplicates import Duplicate, DuplicateFinder
from latentflow.data.record_writer import RecordWriter, record_writer
from latentflow.data.records import DUPLICATES, QUARANTINE, split_of
from latentflow.data.refusal import Fault, Refusal
from latentflow.data.validation import Checked
from latentflow.manifest import DuplicateCounts
from latentflow.params import IngestParams

_EXAMPLES = 3
_SHOWN = 12


def sample_key(record_id: str) -> int:
    """The order in which records are chosen to be shown: by a hash of the id, so that no eye picks them."""
    return int.from_bytes(hashlib.sha256(f"report/{record_id}".encode()).digest())


@dataclass(frozen=True)
class Repeated:
    """A duplicate that is shown, with its media, because it may be in no tar."""

    duplicate: Duplicate
    checked: Checked


@dataclass(frozen=True)
class Outcome:
    """What became of all candidates.

    ``examples`` are the first refusals, ``repeated`` some duplicates of either kind, chosen by a hash of the id;
    ``animated`` pictures were read by one frame.
    """

    digest: str
    counts: dict[str, int]
    refused: int
    duplicates: DuplicateCounts
    animated: int
    unusable_captions: int
    examples: tuple[Refusal, ...]
    repeated: tuple[Repeated, ...]

    @property
    def records(self) -> int:
        return sum(self.counts.values())

    @property
    def candidates(self) -> int:
        return self.records + self.refused + self.duplicates.dropped


class Intake:
    """Takes results one by one and keeps the books; it holds the ids and the looks of all records in memory."""

    def __init__(self, params: IngestParams, writer: RecordWriter, quarantine: TextIO, duplicates: TextIO) -> None:
        self._params = params
        self._writer = writer
        self._quarantine = quarantine
        self._duplicates = duplicates
        self._finder = DuplicateFinder(params.near_duplicate_distance)
        self._seen: set[str] = set()
        self._examples: list[Refusal] = []
        self._repeated: dict[str, list[tuple[int, Repeated]]] = {"near": [], "exact": []}
        self._refused = self._exact = self._near = self._dropped = self._animated = self._unusable_captions = 0

    def take(self, result: Checked | Refusal) -> None:
        if isinstance(result, Refusal):
            self._refuse(result)
        elif result.id in self._seen:
            reason = "the id (file_name) was there before; the first one is kept"
            self._refuse(Refusal(result.id, Fault.DUPLICATE_ID, reason))
        else:
            self._seen.add(result.id)
            self._accept(result)

    def outcome(self) -> Outcome:
        return Outcome(
            digest=self._writer.digest,
            counts=self._writer.counts,
            refused=self._refused,
            duplicates=DuplicateCounts(exact=self._exact, near=self._near, dropped=self._dropped),
            animated=self._animated,
            unusable_captions=self._unusable_captions,
            examples=tuple(self._examples),
            repeated=tuple(one for chosen in self._repeated.values() for _, one in sorted(chosen, reverse=True)),
        )

    def _refuse(self, refusal: Refusal) -> None:
        self._quarantine.write(json.dumps(asdict(refusal)) + "\n")
        self._refused += 1
        if len(self._examples) < _EXAMPLES:
            self._examples.append(refusal)

    def _accept(self, checked: Checked) -> None:
        found = self._finder.find(checked.id, checked.sha256, checked.look)
        if found is not None:
            self._duplicates.write(json.dumps(asdict(found)) + "\n")
            self._exact += found.kind == "exact"
            self._near += found.kind == "near"
            self._choose(Repeated(found, checked))
            if self._drops(found):
                self._dropped += 1
                return
        self._finder.add(checked.id, checked.sha256, checked.look)
        self._animated += checked.animated
        self._unusable_captions += checked.unusable_captions
        fractions = self._params.validation_fraction, self._params.test_fraction
        self._writer.add(checked, split_of(checked.id, *fractions))

    def _choose(self, repeated: Repeated) -> None:
        """Keeps the few of smallest hash: a heap whose top is the largest hash, negated."""
        chosen = self._repeated[repeated.duplicate.kind]
        heapq.heappush(chosen, (-sample_key(repeated.checked.id), repeated))
        if len(chosen) > _SHOWN:
            heapq.heappop(chosen)

    def _drops(self, found: Duplicate) -> bool:
        return self._params.duplicates == "drop_near" or self._params.duplicates == f"drop_{found.kind}"


@contextmanager
def intake(folder: Path, params: IngestParams) -> Iterator[Intake]:
    """An intake into an empty folder, whose files are complete when the context ends without an error."""
    with (
        record_writer(folder) as writer,
        (folder / QUARANTINE).open("w", encoding="utf-8") as quarantine,
        (folder / DUPLICATES).open("w", encoding="utf-8") as duplicates,
    ):
        yield Intake(params, writer, quarantine, duplicates)
