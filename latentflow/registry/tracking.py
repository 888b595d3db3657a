"""MLflow runs: one per trained model, found again on resume, and a child of it per evaluation.

A run is a record, not a dependency: once it is open no failure of the store reaches the caller, and a
training that cannot open one goes on without. Only `register` insists on the store (see versions.py).
"""

import json
import logging
import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from latentflow.errors import RegistryError
from latentflow.manifest import EvaluationManifest, ModelManifest
from latentflow.registry import store
from latentflow.registry.adapters import log_adapter
from latentflow.registry.lineage import lineage_from_environment, split_params, tags
from latentflow.registry.marks import EVALUATION, JUDGED
from latentflow.registry.store import connect

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient
    from PIL.Image import Image

ORIGINAL = "latentflow.original_run_id"
RESUMED = "latentflow.resumed_at_step"
PARENT = "mlflow.parentRunId"

PAUSE_SECONDS = 60.0
_BUFFERED = 20_000
_BATCH_METRICS, _BATCH_PARAMS, _PARAM_LENGTH, _DIGEST_LENGTH = 1000, 100, 6000, 36

log = logging.getLogger(__name__)


class Run:
    """A run that is being written. ``id`` is "" when there is no store: then every method does nothing.

    After a failure the store is left alone for a minute; metrics wait meanwhile, pictures are dropped. What a
    resumed run already holds at a step is not written twice.
    """

    def __init__(self, client: "MlflowClient | None", run_id: str, parent_id: str = "", resumed: bool = False):
        self.id = run_id
        self.parent_id = parent_id
        self.resumed = resumed
        self._client = client
        self._waiting: deque[Metric] = deque(maxlen=_BUFFERED)
        self._retry_at = 0.0
        self._warned = False
        self._last_step: dict[str, int] = {}
        self._pictures: set[str] = set()
        if resumed:
            self._attempt(self._read_back)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Figures at a step; characters that MLflow refuses in a name become `_`."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for given, value in metrics.items():
            name = re.sub(r"[^\w\-./ ]", "_", given)
            if step > self._last_step.get(name, -1):
                self._waiting.append(Metric(name, float(value), now, step))
        self._attempt(self._send_waiting)

    def log_image(self, image: "Image | np.ndarray", key: str, step: int = 0) -> None:
        """A picture at a step; MLflow shows those of one key under a slider."""
        if self._client is None or _picture_mark(key, step) in self._pictures:
            return
        client = self._client
        self._attempt(lambda: client.log_image(self.id, image, key=key, step=step))

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """A dataset that the run read; MLflow keeps 36 characters of its digest. ``context`` is e.g. "training"."""
        if self._client is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest[:_DIGEST_LENGTH], source_type="external", source=json.dumps({"uri": source}))
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        client = self._client
        self._attempt(lambda: client.log_inputs(self.id, datasets=[entry]))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file or a folder, by its name under ``folder``; what has the same name there is replaced."""
        if self._client is None:
            return
        client = self._client
        send = client.log_artifacts if path.is_dir() else client.log_artifact
        place = "/".join(part for part in (folder, path.name if path.is_dir() else "") if part)
        self._attempt(lambda: send(self.id, str(path), place or None))

    def mark(self, name: str, value: str) -> None:
        """A tag latentflow.<name>."""
        if self._client is None:
            return
        client = self._client
        self._attempt(lambda: client.set_tag(self.id, f"latentflow.{name}", value))

    def log_adapter(self, folder: Path, base_model: str, resolution: int, guidance: float) -> None:
        """An adapter's folder as a model of the run, see adapters.log_adapter."""
        if self._client is None:
            return
        client = self._client
        self._retry_at = 0.0  # There is one adapter at the end of a training: try, however short ago it failed.
        self._attempt(lambda: log_adapter(client, self.id, folder, base_model, resolution, guidance))

    def end(self, status: str) -> None:
        """Sends what waits and ends the run as FINISHED, FAILED or KILLED."""
        if self._client is None:
            return
        client = self._client
        self._retry_at = 0.0  # The last chance: try, however short ago it failed.
        self._attempt(self._send_waiting)
        self._attempt(lambda: client.set_terminated(self.id, status))
        if self._waiting:
            log.warning("%d metric values of MLflow run %s were lost", len(self._waiting), self.id)

    def _attempt(self, action: Callable[[], object]) -> None:
        if time.monotonic() < self._retry_at:
            return
        try:
            action()
        except Exception as error:  # Nothing that a store or its client raises may end hours of training.
            self._retry_at = time.monotonic() + PAUSE_SECONDS
            level = logging.DEBUG if self._warned else logging.WARNING
            log.log(level, "MLflow run %s cannot be written now, the work goes on: %s", self.id, error)
            self._warned = True

    def _send_waiting(self) -> None:
        assert self._client is not None
        while self._waiting:
            batch = [self._waiting[i] for i in range(min(_BATCH_METRICS, len(self._waiting)))]
            self._client.log_batch(self.id, metrics=batch)
            for _ in batch:
                self._waiting.popleft()

    def _read_back(self) -> None:
        assert self._client is not None
        for name in self._client.get_run(self.id).data.metrics:
            self._last_step[name] = max(point.step for point in self._client.get_metric_history(self.id, name))
        for artifact in self._client.list_artifacts(self.id, "images"):
            self._pictures.add("+".join(Path(artifact.path).name.replace("%", "+").split("+")[:3]))


@contextmanager
def training_run(
    params: Mapping[str, str], lineage: Mapping[str, str], run_id: str | None = None, checkpoint_step: int | None = None
) -> Iterator[Run]:
    """The run of one trained model, ended as FINISHED, FAILED or (SIGTERM, Ctrl-C) KILLED.

    It is the first of these that the store knows: ``run_id`` (from the checkpoint), MLFLOW_RUN_ID, a new run.
    A given id that the store does not know (another server, a clone) is replaced by a run rebuilt from
    ``params`` and ``lineage`` that carries the old id in the tag latentflow.original_run_id. Without a store
    the run logs nothing and its id is ``run_id`` or "". ``checkpoint_step`` is kept as a tag.
    """
    marks = {**tags(lineage), **_standard_tags(lineage)}
    if checkpoint_step is not None:
        marks[RESUMED] = str(checkpoint_step)
    run = _open(lambda client: _training(client, params, marks, run_id or ""), untracked_id=run_id or "")
    with _ending(run):
        yield run


@contextmanager
def evaluation_run(
    model: ModelManifest,
    evaluation_fingerprint: str,
    params: Mapping[str, str] | None = None,
    model_metrics: Mapping[str, float] | None = None,
) -> Iterator[Run]:
    """A child of the model's run, one per evaluation fingerprint: repeating an evaluation finds its run again.

    Where the store does not know the model's run, that is rebuilt first from the manifest's lineage and
    ``model_metrics`` (the model folder's metrics.json). ``run.parent_id`` is the model's run in this store.
    """

    def child(client: "MlflowClient") -> Run:
        parent = model_run(client, model, model_metrics or {})
        run = _evaluation(client, parent, evaluation_fingerprint, params or {})
        if run.resumed:
            client.update_run(run.id, status="RUNNING")
        return run

    run = _open(child, untracked_id="")
    with _ending(run):
        yield run


def model_run(client: "MlflowClient", model: ModelManifest, metrics: Mapping[str, float]) -> str:
    """The id, in this store, of the run in which the model was trained; rebuilt once where it is unknown."""
    # A model that was trained without a store has no id: its digest stands for one, so that it is found again too.
    original = model.mlflow_run_id or f"untracked-{model.digest[:26]}"
    with store.store_lock():
        if found := _find_training(client, original):
            return found
        lineage, params = split_params(model.lineage)
        marks = {**tags(lineage), **_standard_tags(lineage), ORIGINAL: original}
        run_id = _create(client, marks, f"rebuilt {original[:8]}")
        _log_params(client, run_id, params)
        run = Run(client, run_id)
        run.log_metrics(metrics)
        run.end("FINISHED")
        return run_id


def record_judged(
    client: "MlflowClient", parent: str, evaluation: EvaluationManifest, folder: Path, judged: str
) -> str:
    """The run of an evaluation of the model of the run ``parent``, with the files of its folder that it lacks.

    ``judged`` says what was judged; evaluations are found again by it, see judged.py.
    """
    run = _evaluation(client, parent, evaluation.fingerprint, {})
    run.log_metrics(evaluation.metrics)
    present = {file.path for file in client.list_artifacts(run.id)}
    for path in sorted(folder.iterdir()):
        if path.name in present:
            continue
        if path.is_dir():
            client.log_artifacts(run.id, str(path), path.name)
        else:
            client.log_artifact(run.id, str(path))
    client.set_tag(run.id, JUDGED, judged)
    run.end("FINISHED")
    return run.id


def _open(make: Callable[["MlflowClient"], Run], untracked_id: str) -> Run:
    try:
        client = connect()
        with store.mlflow_errors("open a run"), store.store_lock():
            return make(client)
    except RegistryError as error:
        log.warning("%s The work goes on without MLflow.", error)
        return Run(None, untracked_id)


def _training(client: "MlflowClient", params: Mapping[str, str], marks: dict[str, str], given: str) -> Run:
    wanted = [run_id for run_id in (given, os.environ.get("MLFLOW_RUN_ID")) if run_id]
    found = next((found for run_id in wanted if (found := _find_training(client, run_id))), "")
    if wanted and found != wanted[0]:
        marks = {**marks, ORIGINAL: wanted[0]}
    run = Run(client, found or _create(client, marks), resumed=bool(found))
    if found:
        client.update_run(found, status="RUNNING")
        for key, value in marks.items():
            client.set_tag(found, key, value)
    _log_params(client, run.id, params)
    return run


def _evaluation(client: "MlflowClient", parent: str, evaluation_fingerprint: str, params: Mapping[str, str]) -> Run:
    experiment = client.get_run(parent).info.experiment_id
    query = f"tags.`{PARENT}` = '{parent}' and tags.`{EVALUATION}` = '{evaluation_fingerprint}'"
    if found := client.search_runs([experiment], query, max_results=1):
        run = Run(client, found[0].info.run_id, parent, resumed=True)
    else:
        lineage = lineage_from_environment()
        marks = {PARENT: parent, EVALUATION: evaluation_fingerprint, **tags(lineage), **_standard_tags(lineage)}
        name = f"evaluation {evaluation_fingerprint[:8]}"
        run = Run(client, client.create_run(experiment, tags=marks, run_name=name).info.run_id, parent)
    _log_params(client, run.id, params)
    return run


def _find_training(client: "MlflowClient", run_id: str) -> str:
    """``run_id`` itself if the store has it, else the run that was rebuilt for it, else ""."""
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.lifecycle_stage == "active":
            return run_id
    except MlflowException as error:
        if not store.is_missing(error):
            raise
    rebuilt = client.search_runs([store.experiment_id(client)], f"tags.`{ORIGINAL}` = '{run_id}'", max_results=1)
    return str(rebuilt[0].info.run_id) if rebuilt else ""


def _create(client: "MlflowClient", run_tags: dict[str, str], name: str | None = None) -> str:
    return str(client.create_run(store.experiment_id(client), tags=run_tags, run_name=name).info.run_id)


def _log_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Logs what the run does not have yet: a logged parameter can never change."""
    from mlflow.entities import Param

    present = client.get_run(run_id).data.params
    wanted = {name: value[:_PARAM_LENGTH] for name, value in params.items()}
    if changed := [name for name, value in wanted.items() if present.get(name, value) != value]:
        log.warning("MLflow run %s keeps its first values of %s", run_id, ", ".join(sorted(changed)))
    new = [Param(name, value) for name, value in wanted.items() if name not in present]
    for start in range(0, len(new), _BATCH_PARAMS):
        client.log_batch(run_id, params=new[start : start + _BATCH_PARAMS])


def _standard_tags(lineage: Mapping[str, str]) -> dict[str, str]:
    """The columns Source, Version and User of MLflow's own table of runs."""
    standard = {"mlflow.source.name": "latentflow", "mlflow.source.type": "LOCAL"}
    if user := os.environ.get("USER"):
        standard["mlflow.user"] = user
    if commit := lineage.get("git_commit"):
        standard["mlflow.source.git.commit"] = commit
    return standard


def _picture_mark(key: str, step: int) -> str:
    """How MLflow begins the file name of a picture of this key and step."""
    return f"{key.replace('/', '~')}+step+{step}"


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
