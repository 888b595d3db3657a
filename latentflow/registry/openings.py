"""How a run is found in a store or made there, as data that can wait on disk with what the run is to be told."""

import logging
import os
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from latentflow.manifest import ModelManifest
from latentflow.registry import store
from latentflow.registry.entries import Metrics, send_metrics
from latentflow.registry.lineage import lineage_from_environment, split_params, tags
from latentflow.registry.marks import EVALUATION

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ORIGINAL = "latentflow.original_run_id"
RESUMED = "latentflow.resumed_at_step"
PARENT = "mlflow.parentRunId"
_BATCH_PARAMS, _PARAM_LENGTH = 100, 6000

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A run of the store; ``resumed``: it was there before. ``parent_id`` is "" for a training."""

    run_id: str
    parent_id: str
    resumed: bool


class TrainingOpening(BaseModel):
    """The run of a training: the first of ``wanted`` that the store knows, else a new one that is tagged with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["training"] = "training"
    params: dict[str, str]
    marks: dict[str, str]
    wanted: list[str]
    provisional_id: str

    @classmethod
    def make(cls, params: Mapping[str, str], marks: Mapping[str, str], known: str, new: str) -> Self:
        """``known`` is the id that an earlier process had, or ""; ``new`` is for when there is no other either."""
        wanted = [run_id for run_id in (known, os.environ.get("MLFLOW_RUN_ID")) if run_id]
        return cls(params=dict(params), marks=dict(marks), wanted=wanted, provisional_id=[*wanted, new][0])

    def known_as(self, run_id: str) -> Self:
        """The same, after somebody was told this id: the store's, or the provisional one if no store answered."""
        wanted = [run_id, *(other for other in self.wanted if other != run_id)]
        return self.model_copy(update={"wanted": wanted, "provisional_id": run_id})

    def open(self, client: "MlflowClient", writing: bool) -> Found:
        """Finds or makes the run; it is RUNNING afterwards if it is going to be written."""
        found = next((found for run_id in self.wanted if (found := find_training(client, run_id))), "")
        marks = self.marks
        if self.wanted and found != self.wanted[0]:
            marks = {**marks, ORIGINAL: self.wanted[0]}
        run_id = found or create(client, marks)
        if found:
            if writing:
                client.update_run(found, status="RUNNING")
            for key, value in marks.items():
                client.set_tag(found, key, value)
        log_params(client, run_id, self.params)
        return Found(run_id, "", bool(found))


class EvaluationOpening(BaseModel):
    """The child run of one evaluation; the model's run is rebuilt first where the store does not know it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["evaluation"] = "evaluation"
    model: ModelManifest
    evaluation: str
    params: dict[str, str]
    model_metrics: dict[str, float]

    @property
    def provisional_id(self) -> str:
        """None is needed: the run is found by its fingerprint."""
        return ""

    def known_as(self, run_id: str) -> Self:  # noqa: ARG002
        """The same."""
        return self

    def open(self, client: "MlflowClient", writing: bool) -> Found:
        """Finds or makes the run; it is RUNNING afterwards if it is going to be written."""
        parent = model_run(client, self.model, self.model_metrics)
        return open_evaluation(client, parent, self.evaluation, self.params, writing)


Opening = TrainingOpening | EvaluationOpening
OPENING: TypeAdapter[Opening] = TypeAdapter(Annotated[Opening, Field(discriminator="kind")])


def new_id() -> str:
    """An id for a run that no store has made yet."""
    return uuid.uuid4().hex


def model_run(client: "MlflowClient", model: ModelManifest, metrics: Mapping[str, float]) -> str:
    """The id, in this store, of the run in which the model was trained; rebuilt once where it is unknown."""
    # A model that was trained without a run has no id: its digest stands for one, so that it is found again too.
    original = model.mlflow_run_id or f"untracked-{model.digest[:26]}"
    with store.store_lock():
        if found := find_training(client, original):
            return found
        lineage, params = split_params(model.lineage)
        marks = {**tags(lineage), **standard_tags(lineage), ORIGINAL: original}
        run_id = create(client, marks, f"rebuilt {original[:8]}")
        log_params(client, run_id, params)
        if metrics:
            send_metrics(client, run_id, [Metrics.now(metrics, step=0)])
        client.set_terminated(run_id, "FINISHED")
        return run_id


def open_evaluation(
    client: "MlflowClient", parent: str, evaluation: str, params: Mapping[str, str], writing: bool
) -> Found:
    """The run of an evaluation of the model of the run ``parent``, found by its fingerprint or made."""
    experiment = client.get_run(parent).info.experiment_id
    query = f"tags.`{PARENT}` = '{parent}' and tags.`{EVALUATION}` = '{evaluation}'"
    found = client.search_runs([experiment], query, max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
        if writing:
            client.update_run(run_id, status="RUNNING")
    else:
        lineage = lineage_from_environment()
        marks = {PARENT: parent, EVALUATION: evaluation, **tags(lineage), **standard_tags(lineage)}
        name = f"evaluation {evaluation[:8]}"
        run_id = str(client.create_run(experiment, tags=marks, run_name=name).info.run_id)
    log_params(client, run_id, params)
    return Found(run_id, parent, bool(found))


def find_training(client: "MlflowClient", run_id: str) -> str:
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


def create(client: "MlflowClient", run_tags: Mapping[str, str], name: str | None = None) -> str:
    """A new run in our experiment."""
    return str(client.create_run(store.experiment_id(client), tags=dict(run_tags), run_name=name).info.run_id)


def log_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Logs what the run does not have yet: a logged parameter can never change."""
    from mlflow.entities import Param

    present = client.get_run(run_id).data.params
    wanted = {name: value[:_PARAM_LENGTH] for name, value in params.items()}
    if changed := [name for name, value in wanted.items() if present.get(name, value) != value]:
        log.warning("MLflow run %s keeps its first values of %s", run_id, ", ".join(sorted(changed)))
    new = [Param(name, value) for name, value in wanted.items() if name not in present]
    for start in range(0, len(new), _BATCH_PARAMS):
        client.log_batch(run_id, params=new[start : start + _BATCH_PARAMS])


def standard_tags(lineage: Mapping[str, str]) -> dict[str, str]:
    """The columns Source, Version and User of MLflow's own table of runs."""
    standard = {"mlflow.source.name": "latentflow", "mlflow.source.type": "LOCAL"}
    if user := os.environ.get("USER"):
        standard["mlflow.user"] = user
    if commit := lineage.get("git_commit"):
        standard["mlflow.source.git.commit"] = commit
    return standard
