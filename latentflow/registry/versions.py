"""Versions of the registered model: one per (model, evaluation), with an alias that says what it is for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentflow.manifest import EvaluationManifest, ModelManifest
from latentflow.registry import store
from latentflow.registry.lineage import tags
from latentflow.workspace import tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from latentflow.params import RegisterParams
    from latentflow.registry.packaging import Package

MODEL_DIGEST = "latentflow.model_digest"
EVALUATION = "latentflow.evaluation"
METRIC = "latentflow.metric."


@dataclass(frozen=True)
class Version:
    """A version in the registry: `models:/<name>/<version>` and, by its alias, `models:/<name>@<alias>`."""

    name: str
    version: str
    alias: str
    run_id: str


def register(
    client: "MlflowClient", params: "RegisterParams", package: "Package", model_metrics: Mapping[str, float]
) -> Version:
    """The version of this model with this evaluation; uploaded only if the registry does not have it.

    It becomes the champion where there is none and else the challenger, again each time: the pair that was
    registered last is the one to be compared with the champion.
    """
    with store.store_lock():
        found = find(client, params.name, package.model.digest, package.evaluation.fingerprint)
        if found is None:
            found = _create(client, params.name, package, model_metrics)
        alias = _give_alias(client, params, found)
    return Version(params.name, str(found.version), alias, str(found.run_id or ""))


def find(client: "MlflowClient", name: str, model_digest: str, evaluation: str) -> "ModelVersion | None":
    """The version that holds this model with this evaluation, or None."""
    query = f"name = '{name}' and tags.`{MODEL_DIGEST}` = '{model_digest}' and tags.`{EVALUATION}` = '{evaluation}'"
    ready = [version for version in client.search_model_versions(query) if version.status == "READY"]
    return min(ready, key=lambda version: int(version.version)) if ready else None


def _create(
    client: "MlflowClient", name: str, package: "Package", model_metrics: Mapping[str, float]
) -> "ModelVersion":
    from latentflow.registry.packaging import log_model
    from latentflow.registry.tracking import record_evaluation

    model_run, evaluation_run = record_evaluation(client, package.model, package.evaluation, model_metrics)
    model_id = log_model(client, package, model_run)
    _copy_metrics(client, evaluation_run, model_id)
    _ensure_model(client, name)
    how = package.generation
    sampler = f"{how['sampler']}, {how['steps']} steps, guidance {how['guidance']:g}"
    # A local registry looks the model up through MLflow's global address instead of the client's own.
    with store.environment("MLFLOW_TRACKING_URI", tracking_uri()):
        return client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=model_run,
            model_id=model_id,
            tags=version_tags(package.model, package.evaluation, evaluation_run),
            description=f"{package.model.pipeline_class}, {sampler}",
        )


def version_tags(model: ModelManifest, evaluation: EvaluationManifest, evaluation_run: str) -> dict[str, str]:
    """Identity, lineage and figures of a version; the first two tags are what `find` looks for."""
    return {
        MODEL_DIGEST: model.digest,
        EVALUATION: evaluation.fingerprint,
        "latentflow.evaluation_run_id": evaluation_run,
        **tags(model.lineage),
        **{f"{METRIC}{name}": f"{value:.6g}" for name, value in evaluation.metrics.items()},
    }


def _copy_metrics(client: "MlflowClient", run_id: str, model_id: str) -> None:
    """Attaches the evaluation's figures to the uploaded model: the same points, so the run keeps one of each."""
    from mlflow.entities import Metric

    points: list[Any] = []
    for name in client.get_run(run_id).data.metrics:
        last = client.get_metric_history(run_id, name)[-1]
        points.append(Metric(name, last.value, last.timestamp, last.step, model_id=model_id, run_id=run_id))
    client.log_batch(run_id, metrics=points)


def _ensure_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _give_alias(client: "MlflowClient", params: "RegisterParams", version: "ModelVersion") -> str:
    aliases = client.get_registered_model(params.name).aliases
    champion = aliases.get(params.champion_alias)
    if champion is not None and str(champion) == str(version.version):
        return params.champion_alias
    alias = params.champion_alias if champion is None else params.challenger_alias
    if str(aliases.get(alias)) != str(version.version):
        client.set_registered_model_alias(params.name, alias, str(version.version))
    return alias
