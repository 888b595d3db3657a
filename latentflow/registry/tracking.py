"""MLflow runs: one per trained model, found again on resume, and a child of it per evaluation.

A run is a record, not a dependency: no failure of the store reaches the caller. What a run is told is kept on disk
until the store has it, so a server that is away for a while, or until the work has ended, loses nothing. Only
`register` insists on the store (see versions.py).
"""

import logging
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from latentflow.errors import RegistryError
from latentflow.manifest import EvaluationManifest, ModelManifest
from latentflow.registry import entries, journal, store
from latentflow.registry.journal import Journal, Kept
from latentflow.registry.lineage import tags
from latentflow.registry.marks import JUDGED
from latentflow.registry.openings import (
    OPENING,
    RESUMED,
    EvaluationOpening,
    Opening,
    TrainingOpening,
    new_id,
    open_evaluation,
    standard_tags,
)
from latentflow.registry.openings import ORIGINAL as ORIGINAL
from latentflow.registry.openings import PARENT as PARENT
from latentflow.registry.openings import find_training as find_training
from latentflow.registry.openings import model_run as model_run
from latentflow.registry.store import connect

if TYPE_CHECKING:
    import numpy as np
    from mlflow.tracking import MlflowClient
    from PIL.Image import Image

PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 15.0, 600.0
_BATCH = 1000

log = logging.getLogger(__name__)


class Run:
    """A run that is being written: what it is told goes into ``journal`` and from there to the store, in order.

    ``id`` is the store's, or until the store answered one of our own, by which the run is found later (an evaluation
    has none: it is found by its fingerprint). After a failure the store is left alone for a while, longer each time.
    What a resumed run already holds at a step is not written twice.
    """

    def __init__(self, opening: Opening, kept: Journal, writing: bool = True):
        self.id = opening.provisional_id
        self.parent_id = ""
        self._opening, self._journal, self._writing = opening, kept, writing
        self._client: MlflowClient | None = None
        self._failures, self._retry_at = 0, 0.0
        self._last_step: dict[str, int] = {}
        self._pictures: set[str] = set()
        for waiting in kept.entries():
            self._remember(waiting.entry)
        self.deliver()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Figures at a step; characters that MLflow refuses in a name become `_`."""
        if entry := _newer(entries.Metrics.now(metrics, step), self._last_step):
            self._tell(entry)

    def log_image(self, image: "Image | np.ndarray", key: str, step: int = 0) -> None:
        """A picture, as such or as uint8 values (h, w, 3), at a step; MLflow shows those of one key under a slider."""
        entry = entries.Picture(time=entries.now(), key=key, step=step)
        if entry.mark in self._pictures:
            return
        from PIL import Image as Pictures

        picture = image if isinstance(image, Pictures.Image) else Pictures.fromarray(image)
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "picture.png"
            picture.save(file)
            self._tell(entry, file)

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """A dataset that the run read; MLflow keeps 36 characters of its digest. ``context`` is e.g. "training"."""
        self._tell(entries.Dataset(time=entries.now(), name=name, digest=digest, source=source, context=context))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file or a folder, by its name under ``folder``; what has the same name there is replaced."""
        self._tell(entries.Artifact(time=entries.now(), folder=folder), path)

    def mark(self, name: str, value: str) -> None:
        """A tag latentflow.<name>."""
        self._tell(entries.Tag(time=entries.now(), name=f"latentflow.{name}", value=value))

    def log_adapter(self, folder: Path, base_model: str, resolution: int, guidance: float) -> None:
        """An adapter's folder as a model of the run, see adapters.log_adapter."""
        entry = entries.Adapter(time=entries.now(), base_model=base_model, resolution=resolution, guidance=guidance)
        self._tell(entry, folder)

    def end(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED, and says what the store does not have yet."""
        self._retry_at = 0.0  # The last chance: try, however short ago it failed.
        self._tell(entries.End(time=entries.now(), status=status))
        self.settle()

    def deliver(self) -> None:
        """Sends what waits, unless the store failed a moment ago."""
        if time.monotonic() < self._retry_at:
            return
        try:
            if self._client is None:
                self._client = self._open()
            sent = self._send(self._client)
        except Exception as error:  # Nothing that a store or its client raises may end hours of training.
            # Opened anew before the next try, which tells what did arrive although no answer came back.
            self._client = None
            self._opening = self._opening.known_as(self.id)
            self._journal.remember(self._opening.model_dump_json())
            pause = min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS * 2**self._failures)
            self._failures, self._retry_at = self._failures + 1, time.monotonic() + pause
            level = logging.DEBUG if self._failures > 1 else logging.WARNING
            log.log(level, "%s The work goes on, and what MLflow is to be told is kept.", _sentence(error))
        else:
            if self._failures:
                log.info("MLflow answers again: run %s has been told %d things that waited", self.id, sent)
            self._failures, self._retry_at = 0, 0.0

    def settle(self) -> list[Kept]:
        """What the store does not have, with a warning that says so; where that is nothing the journal goes."""
        left = self._journal.entries()
        if left and self._journal.lasting:
            what, place = journal.describe(left), self._journal.folder
            log.warning("MLflow was not told yet: %s. It is kept in %s; `latentflow deliver` sends it.", what, place)
        elif left:
            log.warning("MLflow was never told: %s.", journal.describe(left))
        else:
            self._journal.close()
        return left

    def _tell(self, entry: entries.Entry, payload: Path | None = None) -> None:
        try:
            self._journal.add(entry, payload)
        except OSError as error:  # As little as the store may the disk of the journal end the work.
            log.warning("MLflow will not be told of %s, which could not be kept: %s", entry.kind, error)
        self.deliver()

    def _open(self) -> "MlflowClient":
        client = connect()
        with store.mlflow_errors("open a run"), store.store_lock():
            found = self._opening.open(client, self._writing)
        self.id, self.parent_id = found.run_id, found.parent_id
        self._opening = self._opening.known_as(found.run_id)
        self._journal.remember(self._opening.model_dump_json())
        if found.resumed:
            present = _read_back(client, found.run_id)
            for name, step in present.steps.items():
                self._last_step[name] = max(step, self._last_step.get(name, -1))
            self._pictures |= present.pictures
            self._forget(present)
        return client

    def _remember(self, entry: entries.Entry) -> None:
        """A resumed training tells again what came after its checkpoint; what waits of that is enough."""
        if isinstance(entry, entries.Metrics):
            for name in entry.values:
                self._last_step[name] = max(entry.step, self._last_step.get(name, -1))
        elif isinstance(entry, entries.Picture):
            self._pictures.add(entry.mark)

    def _forget(self, present: "_Present") -> None:
        """What waits although the store has it: its answer was lost, or the process died before it was noted."""
        for waiting in self._journal.entries():
            entry = waiting.entry
            if isinstance(entry, entries.Metrics):
                newer = _newer(entry, present.steps)
                if newer is None:
                    self._journal.remove(waiting)
                elif newer != entry:
                    self._journal.change(waiting, newer)
            elif isinstance(entry, entries.Picture) and entry.mark in present.pictures:
                self._journal.remove(waiting)

    def _send(self, client: "MlflowClient") -> int:
        waiting = self._journal.entries()
        sent = 0
        while sent < len(waiting):
            batch = _metrics_at(waiting[sent:]) or waiting[sent : sent + 1]
            self._send_batch(client, batch)
            sent += len(batch)
        return sent

    def _send_batch(self, client: "MlflowClient", batch: list[Kept]) -> None:
        """Sends entries of metrics in one request; what the store refuses for what it is, is put aside."""
        try:
            if len(batch) > 1:
                figures = [kept.entry for kept in batch if isinstance(kept.entry, entries.Metrics)]
                entries.send_metrics(client, self.id, figures)
            else:
                batch[0].entry.send(client, self.id, batch[0].payload)
        except Exception as error:
            if not store.is_refusal(error):
                raise
            if len(batch) > 1:
                for kept in batch:
                    self._send_batch(client, [kept])
                return
            place = self._journal.refuse(batch[0].folder)
            log.warning("MLflow refuses something of run %s, it is in %s: %s", self.id, place, error)
        else:
            for kept in batch:
                self._journal.remove(kept)


class _Present(NamedTuple):
    """What a run holds in the store: the last step of each metric, and marks of pictures."""

    steps: dict[str, int]
    pictures: set[str]


def _read_back(client: "MlflowClient", run_id: str) -> _Present:
    names = client.get_run(run_id).data.metrics
    steps = {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in names}
    files = client.list_artifacts(run_id, "images")
    return _Present(steps, {"+".join(Path(file.path).name.replace("%", "+").split("+")[:3]) for file in files})


def _newer(entry: entries.Metrics, steps: Mapping[str, int]) -> entries.Metrics | None:
    """What of an entry is of later steps than these; None if nothing is."""
    values = {name: value for name, value in entry.values.items() if entry.step > steps.get(name, -1)}
    return entry.model_copy(update={"values": values}) if values else None


def _metrics_at(waiting: list[Kept]) -> list[Kept]:
    """The entries of metrics at the beginning that fit into one request."""
    batch: list[Kept] = []
    points = 0
    for kept in waiting:
        points += len(kept.entry.values) if isinstance(kept.entry, entries.Metrics) else _BATCH + 1
        if points > _BATCH:
            break
        batch.append(kept)
    return batch


def _sentence(error: Exception) -> str:
    if isinstance(error, RegistryError):
        return str(error)
    reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
    return f"MLflow cannot be told now: {reason}."


@contextmanager
def training_run(
    params: Mapping[str, str],
    lineage: Mapping[str, str],
    run_id: str | None = None,
    checkpoint_step: int | None = None,
    kept: Path | None = None,
) -> Iterator[Run]:
    """The run of one trained model, ended as FINISHED, FAILED or (SIGTERM, Ctrl-C) KILLED.

    It is the first of these that the store knows: ``run_id`` (from the checkpoint), MLFLOW_RUN_ID, a new run.
    A given id that the store does not know (another server, a clone) is replaced by a run rebuilt from
    ``params`` and ``lineage`` that carries the old id in the tag latentflow.original_run_id.
    ``checkpoint_step`` is kept as a tag. ``kept`` is a folder that outlives the process, for what the store could not
    be told; without it that goes with the process.
    """
    marks = {**tags(lineage), **standard_tags(lineage)}
    if checkpoint_step is not None:
        marks[RESUMED] = str(checkpoint_step)
    waiting = Journal(kept)
    before = _earlier(waiting)
    known = run_id or (before.provisional_id if before else "")
    with _session(TrainingOpening.make(params, marks, known, new_id()), waiting) as run:
        yield run


@contextmanager
def evaluation_run(
    model: ModelManifest,
    evaluation_fingerprint: str,
    params: Mapping[str, str] | None = None,
    model_metrics: Mapping[str, float] | None = None,
    kept: Path | None = None,
) -> Iterator[Run]:
    """A child of the model's run, one per evaluation fingerprint: repeating an evaluation finds its run again.

    Where the store does not know the model's run, that is rebuilt first from the manifest's lineage and
    ``model_metrics`` (the model folder's metrics.json). ``run.parent_id`` is the model's run in this store.
    ``kept`` as in `training_run`.
    """
    opening = EvaluationOpening(
        model=model,
        evaluation=evaluation_fingerprint,
        params=dict(params or {}),
        model_metrics=dict(model_metrics or {}),
    )
    with _session(opening, Journal(kept)) as run:
        yield run


def record_judged(
    client: "MlflowClient", parent: str, evaluation: EvaluationManifest, folder: Path, judged: str
) -> str:
    """The run of an evaluation of the model of the run ``parent``, with the files of its folder that it lacks.

    ``judged`` says what was judged; evaluations are found again by it, see judged.py.
    """
    run_id = open_evaluation(client, parent, evaluation.fingerprint, {}, writing=False).run_id
    present = dict.fromkeys(client.get_run(run_id).data.metrics, 0)
    if missing := _newer(entries.Metrics.now(evaluation.metrics, step=0), present):
        entries.send_metrics(client, run_id, [missing])
    files = {file.path for file in client.list_artifacts(run_id)}
    for path in sorted(folder.iterdir()):
        if path.name not in files:
            entries.Artifact(time=entries.now(), folder="").send(client, run_id, path)
    client.set_tag(run_id, JUDGED, judged)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def deliver(kept: Path) -> list[Kept]:
    """Sends what an ended process could not; returns what is left, which `settle` has warned of."""
    waiting = Journal(kept)
    opening = _earlier(waiting)
    if opening is None:
        return waiting.entries()
    return Run(opening, waiting, writing=False).settle()


def _earlier(waiting: Journal) -> Opening | None:
    """How the process before opened the run, if it told so in a form that this version reads."""
    try:
        return OPENING.validate_json(waiting.opening() or b"")
    except ValidationError:
        return None


@contextmanager
def _session(opening: Opening, kept: Journal) -> Iterator[Run]:
    """A run that is written until the block ends, and then ended."""
    # How an earlier process ended is no longer true.
    for waiting in kept.entries():
        if isinstance(waiting.entry, entries.End):
            kept.remove(waiting)
    kept.remember(opening.model_dump_json())
    run = Run(opening, kept)
    with _ending(run):
        yield run


@contextmanager
def _ending(run: Run) -> Iterator[None]:
    with _sigterm_raises():
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            run.end("KILLED")
            raise
        except BaseException:
            run.end("FAILED")
            raise
        run.end("FINISHED")


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM unwinds the stack like Ctrl-C does; a handler that somebody else has set stays."""
    try:
        free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if free:
            signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # Not the main thread: signals are not ours to handle.
        free = False
    try:
        yield
    finally:
        if free and signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # A second SIGTERM need not wait for anything.
    raise SystemExit(128 + signum)
