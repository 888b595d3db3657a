"""The checkpoints of one training, in a folder or behind a URL: whole or absent, and written beside the training.

A checkpoint is a folder ``step-000001200`` with files of the training's own and ``files.json``, which names their
sha256 and comes last: a folder without it is no checkpoint yet, or no more.
"""

import logging
import math
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from safetensors import SafetensorError

from latentflow.data import parcels
from latentflow.data.locations import without_secrets
from latentflow.data.parcels import FILES, DamagedFolderError, reason
from latentflow.data.remote import RemoteFolder, local_folder
from latentflow.errors import LatentflowError
from latentflow.files import Scratch, atomic_folder, digest_json

PREFIX = "step-"
log = logging.getLogger(__name__)

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest ``last``, and each whose step is a multiple of ``every`` (0: no others)."""

    last: int
    every: int

    def chosen(self, steps: Collection[int], losses: Mapping[int, float]) -> set[int]:
        """Of ``steps``, those that stay; also the one of the lowest loss, the later of two equal ones."""
        kept = set(sorted(steps)[-self.last :]) | {step for step in steps if self.every and step % self.every == 0}
        if judged := [step for step in steps if math.isfinite(losses.get(step, math.nan))]:
            kept.add(min(judged, key=lambda step: (losses[step], -step)))
        return kept


class Checkpoint:
    """A checkpoint whose files were compared with their digests; what was fetched lives as long as this object."""

    def __init__(self, step: int, folder: Path, scratch: Scratch | None = None) -> None:
        self.step = step
        self.folder = folder
        self._scratch = scratch


class Vault:
    """Where one training's checkpoints lie. One process saves; any number may read while none is saved.

    ``place`` is a folder or an fsspec URL. A checkpoint for a URL is put together in the temporary folder (TMPDIR).
    """

    def __init__(self, place: Path | str, keep: Keep) -> None:
        self._shelf = _shelf(place)
        self._keep = keep
        self._damaged: set[int] = set()
        self._prepared = False
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def __str__(self) -> str:
        return str(self._shelf)

    def prepare(self) -> None:
        """Makes the place and removes what a killed writer left; the process that saves may ask for it early.

        Raises LatentflowError where nothing can be written.
        """
        try:
            self._prepare()
        except (OSError, LatentflowError) as error:
            raise LatentflowError(f"No checkpoint can be kept in {self}: {reason(error)}") from error

    def save(self, step: int, write: Write, losses: Mapping[int, float], wait: bool = False) -> None:
        """Lets ``write`` fill a folder in a thread, keeps it as the checkpoint of ``step``, then removes what need not
        stay by ``keep`` and ``losses`` (held-out loss by step). Waits for the save before, and raises what it raised.

        What ``write`` reads must not change until the next call: give it copies.
        """
        self.wait()
        self._thread = threading.Thread(target=self._save, args=(step, write, dict(losses)), name="checkpoint")
        self._thread.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when what is being written is there.

        Raises LatentflowError with place, reason and the last good checkpoint if it could not be, once.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if failure := self._failure:
            self._failure = None
            raise failure

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose files have their digests; others are warned of by name and passed over."""
        self.wait()
        steps = sorted(self._whole(), reverse=True)
        for step in steps:
            try:
                return self._shelf.get(step)
            except DamagedFolderError as error:
                log.warning("%s It is passed over.", error)
                self._damaged.add(step)
        if steps:
            log.warning("none of the %d checkpoints in %s is whole", len(steps), self)
        return None

    def describe_newest(self) -> str:
        """The newest checkpoint in words, for messages; its files are not read, and nothing is waited for."""
        try:
            steps = self._whole() - self._damaged
        except (OSError, LatentflowError):
            return f"none that can be seen in {self} now"
        return f"checkpoint of step {max(steps)} in {self}" if steps else "no checkpoint yet"

    def _whole(self) -> set[int]:
        return {step for step, whole in self._shelf.steps().items() if whole}

    def _prepare(self) -> None:
        if not self._prepared:
            self._shelf.prepare()
            self._prepared = True

    def _save(self, step: int, write: Write, losses: Mapping[int, float]) -> None:
        """The thread. A fault that is not the place's or the disk's is raised as it is by the next call."""
        try:
            self._prepare()
            self._shelf.put(step, write)
            self._damaged.discard(step)
            try:
                self._remove_others(step, losses)
            except OSError as error:
                log.warning("an old checkpoint in %s could not be removed: %s", self, reason(error))
        except (OSError, SafetensorError, LatentflowError) as error:
            self._failure = LatentflowError(
                f"The checkpoint of step {step} could not be kept in {self}: {reason(error)} Mend that or choose "
                f"another place, then start again. Last good: {self.describe_newest()}."
            )
            self._failure.__cause__ = error
        except Exception as error:
            self._failure = error

    def _remove_others(self, saved: int, losses: Mapping[int, float]) -> None:
        found = self._shelf.steps()
        kept = self._keep.chosen({step for step, whole in found.items() if whole} - self._damaged, losses) | {saved}
        for step in found.keys() - kept:
            self._shelf.remove(step)
        self._damaged &= kept


def open_checkpoint(place: Path | str) -> Checkpoint:
    """The checkpoint in the folder or behind the URL that a user named.

    Raises LatentflowError where there is none, and names the file that is missing or damaged.
    """
    text = str(place).rstrip("/")
    parent, _, name = text.rpartition("/")
    step = _step_of(name)
    if step is None or not (shelf := _shelf(parent or ("/" if text.startswith("/") else "."))).steps().get(step):
        raise LatentflowError(without_secrets(f"{text} is not a checkpoint: {_what_is_there(place)}"))
    return shelf.get(step)


def _what_is_there(place: Path | str) -> str:
    """What a user should have named instead."""
    steps = sorted(step for step, whole in _shelf(place).steps().items() if whole)
    if not steps:
        return f"it should be a folder {PREFIX}000001200 with a {FILES}, as training writes it."
    return f"it holds {len(steps)}; name one of them, such as {_name(steps[-1])}."


class _Shelf(Protocol):
    """Checkpoints in one kind of place."""

    def prepare(self) -> None:
        """Makes the place, removes what a killed writer left, and raises what writing raises."""

    def steps(self) -> dict[int, bool]:
        """Every step of which there is something, and whether it is all there."""

    def put(self, step: int, write: Write) -> None:
        """Keeps what ``write`` writes as the checkpoint of ``step``."""

    def get(self, step: int) -> Checkpoint:
        """A whole checkpoint. Raises DamagedFolderError where a file is missing or another than was written."""

    def remove(self, step: int) -> None:
        """Removes a checkpoint, or what there is of it."""


def _shelf(place: Path | str) -> _Shelf:
    folder = local_folder(place)
    return _RemoteShelf(RemoteFolder(str(place))) if folder is None else _LocalShelf(folder)


class _LocalShelf:
    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def __str__(self) -> str:
        return str(self._folder)

    def prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(f".{PREFIX}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryFile(dir=self._folder):
            pass

    def steps(self) -> dict[int, bool]:
        paths = list(self._folder.iterdir()) if self._folder.is_dir() else []
        return {step: (path / FILES).is_file() for path in paths if (step := _step_of(path.name)) is not None}

    def put(self, step: int, write: Write) -> None:
        with atomic_folder(self._folder / _name(step)) as temporary:
            _fill(temporary, write)

    def get(self, step: int) -> Checkpoint:
        folder = self._folder / _name(step)
        parcels.compare(folder)
        return Checkpoint(step, folder)

    def remove(self, step: int) -> None:
        folder = self._folder / _name(step)
        (folder / FILES).unlink(missing_ok=True)
        shutil.rmtree(folder)


class _RemoteShelf:
    def __init__(self, remote: RemoteFolder) -> None:
        self._remote = remote
        self._scratch = f"latentflow-checkpoint-{digest_json(remote.url)[:16]}-"

    def __str__(self) -> str:
        return str(self._remote)

    def prepare(self) -> None:
        Scratch.sweep(self._scratch)
        with Scratch(self._scratch) as folder:
            (folder / "probe").write_bytes(b"")
            self._remote.put(folder / "probe", ".probe")
        self._remote.remove(".probe")

    def steps(self) -> dict[int, bool]:
        found: dict[int, bool] = {}
        for path in map(PurePosixPath, self._remote.names()):
            if len(path.parts) > 1 and (step := _step_of(path.parts[0])) is not None:
                found[step] = found.get(step, False) or path.parts[1:] == (FILES,)
        return found

    def put(self, step: int, write: Write) -> None:
        with Scratch(self._scratch) as folder:
            try:
                _fill(folder, write)
            except (OSError, SafetensorError) as error:
                raise LatentflowError(f"the temporary folder {folder.parent} (TMPDIR): {reason(error)}") from error
            parcels.put(self._remote, folder, _name(step))

    def get(self, step: int) -> Checkpoint:
        scratch = Scratch(self._scratch)
        parcels.get(self._remote, scratch.folder, _name(step))
        return Checkpoint(step, scratch.folder, scratch)

    def remove(self, step: int) -> None:
        parcels.remove(self._remote, _name(step))


def _name(step: int) -> str:
    return f"{PREFIX}{step:09d}"


def _step_of(name: str) -> int | None:
    found = re.fullmatch(rf"{PREFIX}(\d{{9,}})", name)
    return int(found[1]) if found else None


def _fill(folder: Path, write: Write) -> None:
    """Writes a checkpoint's files and what they must be found to be."""
    write(folder)
    parcels.seal(folder)
