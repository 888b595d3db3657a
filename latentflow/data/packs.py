"""The work store of encoded rows: every row that was ever encoded, found again by what it was made from.

A pack is a finished shard, named by its rows' keys in their order. A shard whose rows are known is copied whole or put
together from the rows of other packs; only what is missing is encoded. Rows of different encoders, preprocessing or
types lie in different folders, so a key is no more than the digest of the picture or caption.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentflow.data.shards import describe_shard, write_shard
from latentflow.files import sha256_file, write_json
from latentflow.manifest import Kind, Shard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where one row lies."""

    pack: Path
    row: int


class Packs:
    """The packs of one kind of row that were made in one way."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder = folder
        self.kind = kind
        self._places: dict[bytes, Place] | None = None

    def path(self, keys: Sequence[bytes]) -> Path:
        """Where the pack of these rows lies or would lie."""
        return self.folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.safetensors"

    def lock(self, keys: Sequence[bytes]) -> FileLock:
        """Held by whoever makes the pack; it may be released by another thread."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.path(keys)}.lock", thread_local=False)

    def whole(self, keys: Sequence[bytes]) -> Shard | None:
        """The description of the finished pack of these rows; one whose bytes changed is dropped."""
        path = self.path(keys)
        if not path.is_file():
            return None
        try:
            described = self._described(path)
            if sha256_file(path) == described.sha256:
                return described
        except SafetensorError:
            pass
        log.warning("%s is not what was written there; its rows are encoded again", path)
        path.unlink()
        self._places = None
        return None

    def places(self, keys: Sequence[bytes]) -> dict[bytes, Place]:
        """Those of the rows that lie in any pack, and where."""
        if self._places is None:
            self._places = dict(_all_places(self.folder))
        found = {key: self._places[key] for key in keys if key in self._places}
        # Another process may have dropped a pack since.
        there = {pack for pack in {place.pack for place in found.values()} if pack.is_file()}
        return {key: place for key, place in found.items() if place.pack in there}

    def assemble(self, keys: Sequence[bytes], places: dict[bytes, Place], new: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a shard: rows at ``places`` from other packs, the others from ``new`` in their order."""
        fresh = {key: number for number, key in enumerate(missing(keys, places))}
        opened = {pack: safe_open(pack, framework="pt") for pack in {place.pack for place in places.values()}}
        names = list(new) or [name for pack in opened.values() for name in pack.keys()]  # noqa: SIM118
        columns = {}
        for name in dict.fromkeys(names):
            old = {pack: file.get_tensor(name) for pack, file in opened.items()}
            rows = [new[name][fresh[key]] if key in fresh else old[places[key].pack][places[key].row] for key in keys]
            columns[name] = torch.stack(rows)
        return columns

    def write(self, keys: Sequence[bytes], tensors: dict[str, Tensor]) -> Shard:
        """Writes a finished pack; afterwards its rows can be found."""
        path = self.path(keys)
        write_shard(path, tensors)
        if self._places is not None:
            self._places |= {key: Place(path, row) for row, key in enumerate(keys)}
        return self._describe(path)

    def _described(self, path: Path) -> Shard:
        """What was noted when the pack was written; a run that was killed in between left no note."""
        try:
            return Shard.model_validate(json.loads(_note(path).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return self._describe(path)

    def _describe(self, path: Path) -> Shard:
        described = describe_shard(path, path.name, self.kind)
        write_json(_note(path), described.model_dump(mode="json"))
        return described


def missing(keys: Sequence[bytes], places: dict[bytes, Place]) -> list[bytes]:
    """The rows that have to be encoded, each once, in their order."""
    return [key for key in dict.fromkeys(keys) if key not in places]


def drop_superseded(in_use: Sequence[Path]) -> None:
    """Removes, beside the packs in use, those whose every row also lies in one of these: no encoding is lost."""
    for folder in {path.parent for path in in_use}:
        used = {path for path in in_use if path.parent == folder}
        kept = {key for path in used for key in _keys(path)}
        for path in set(folder.glob("*.safetensors")) - used:
            if kept.issuperset(_keys(path)):
                for one in (path, _note(path), Path(f"{path}.lock")):
                    one.unlink(missing_ok=True)


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def _all_places(folder: Path) -> "list[tuple[bytes, Place]]":
    places = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            places += [(key, Place(path, row)) for row, key in enumerate(_keys(path))]
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be read (%s); its rows are encoded again", path, error)
    return places


def _keys(path: Path) -> list[bytes]:
    """The keys of a pack's rows."""
    with safe_open(path, framework="pt") as file:
        rows = file.get_tensor("source").numpy()
    return [row.tobytes() for row in rows]
