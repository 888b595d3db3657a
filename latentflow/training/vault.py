"""The checkpoints of one training, in a folder or behind a URL: whole or absent, and written beside the training.

A checkpoint is a folder ``step-000001200`` with files of the training's own and ``files.json``, which names their
sha256 and comes last: a folder without it is no checkpoint yet, or no more.
"""

import json
import logging
import math
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NoReturn, Protocol, TypeVar

from safetensors import SafetensorError

from latentflow.data.locations import without_secrets
from latentflow.data.remote import RemoteFolder, local_folder
from latentflow.errors import LatentflowError
from latentflow.files import Scratch, atomic_folder, digest_json, sha256_file, write_json

FILES = "files.json"
PREFIX = "step-"
log = logging.getLogger(__name__)

Write = Callable[[Path], None]
T = TypeVar("T")


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


class DamagedCheckpointError(LatentflowError):
    """A file of a checkpoint is missing or holds other bytes than were written; the message names it."""


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
            raise LatentflowError(f"No checkpoint can be kept in {self}: {_reason(error)}") from error

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
            except DamagedCheckpointError as error:
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
                log.warning("an old checkpoint in %s could not be removed: %s", self, _reason(error))
        except (OSError, SafetensorError, LatentflowError) as error:
            self._failure = LatentflowError(
                f"The checkpoint of step {step} could not be kept in {self}: {_reason(error)} Mend that or choose "
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
        """A whole checkpoint. Raises DamagedCheckpointError where a file is missing or another than was written."""

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
        _compare(str(folder), (folder / FILES).read_bytes, lambda name: sha256_file(folder / name))
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
                raise LatentflowError(f"the temporary folder {folder.parent} (TMPDIR): {_reason(error)}") from error
            # Of a checkpoint that is written anew, a reader must not see some old and some new files.
            self.remove(step)
            for path in sorted(_files_in(folder), key=lambda path: path == folder / FILES):
                self._remote.put(path, f"{_name(step)}/{path.relative_to(folder).as_posix()}")

    def get(self, step: int) -> Checkpoint:
        scratch = Scratch(self._scratch)

        def fetch(name: str) -> str:
            path = scratch.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            return self._remote.fetch(f"{_name(step)}/{name}", path)

        def listed() -> bytes:
            fetch(FILES)
            return (scratch.folder / FILES).read_bytes()

        _compare(f"{self._remote}/{_name(step)}", listed, fetch)
        return Checkpoint(step, scratch.folder, scratch)

    def remove(self, step: int) -> None:
        names = [name for name in self._remote.names() if name.startswith(f"{_name(step)}/")]
        for name in sorted(names, key=lambda name: name != f"{_name(step)}/{FILES}"):
            self._remote.remove(name)


def _name(step: int) -> str:
    return f"{PREFIX}{step:09d}"


def _step_of(name: str) -> int | None:
    found = re.fullmatch(rf"{PREFIX}(\d{{9,}})", name)
    return int(found[1]) if found else None


def _fill(folder: Path, write: Write) -> None:
    """Writes a checkpoint's files and what they must be found to be."""
    write(folder)
    write_json(folder / FILES, {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(_files_in(folder))})


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _compare(origin: str, listed: Callable[[], bytes], digest: Callable[[str], str]) -> None:
    """Compares the digests of the files of the checkpoint ``origin`` with those that are listed in its files.json."""
    for name, sha256 in _digests(origin, _read(origin, FILES, listed)).items():
        if _read(origin, name, partial(digest, name)) != sha256:
            _refuse(origin, name, "is damaged: it holds other bytes than were written")


def _read(origin: str, name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError:
        _refuse(origin, name, "is missing")
    except OSError as error:
        raise LatentflowError(f"{origin}/{name} cannot be read: {_reason(error)}") from error


def _digests(origin: str, text: bytes) -> dict[str, str]:
    """What a files.json says: names of files within its folder and their sha256."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(sha256, str) for sha256 in value.values()):
        _refuse(origin, FILES, "is damaged")
    if any(name.startswith("/") or ".." in name.split("/") for name in value):
        _refuse(origin, FILES, "names a file outside the checkpoint")
    return value


def _refuse(origin: str, name: str, fault: str) -> NoReturn:
    raise DamagedCheckpointError(f"{origin} cannot be used: its file {name} {fault}.")


def _reason(error: Exception) -> str:
    """An error as the end of a sentence."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{(text or type(error).__name__).rstrip('.')}."
