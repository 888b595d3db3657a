"""Versions of the registered model: one per (model, evaluation), with the gate's verdict and what alias follows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentflow.errors import RegistryError
from latentflow.params import RegisterParams
from latentflow.registry import marks, store
from latentflow.registry.gate import Status, Verdict, rules_key
from latentflow.registry.lineage import tags
from latentflow.workspace import tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from latentflow.registry.ledger import Turn
    from latentflow.registry.packaging import Package

ROUNDS = 3
_TAG_LENGTH = 4000

Compare = Callable[["ModelVersion | None"], Verdict]
"""The gate: what it says of the model beside this champion."""


@dataclass(frozen=True)
class Version:
    """A version in the registry: `models:/<name>/<version>` and, where it has an alias, `models:/<name>@<alias>`.

    ``status`` is the gate's, ``champion`` the version with which it was compared ("" for none), ``rules`` the digest
    of both and the rules.
    """

    name: str
    version: str
    alias: str
    run_id: str
    status: str
    champion: str
    rules: str


@dataclass(frozen=True)
class Upload:
    """What a version is made of, in the store already."""

    model_id: str
    model_run: str
    evaluation_run: str


class Registration:
    """A model with its evaluation on its way into the registry; uploaded at most once."""

    def __init__(
        self, client: "MlflowClient", params: RegisterParams, package: "Package", metrics: Mapping[str, float]
    ) -> None:
        self._client = client
        self._params = params
        self._package = package
        self._metrics = metrics
        self._uploaded: Upload | None = None

    def register(self, compare: Compare) -> tuple[Version, Verdict]:
        """The version of this model with this evaluation, and what the gate says of it.

        What the gate does not refuse becomes the champion where there is none and else the challenger, again each
        time: the pair that was registered last is the one to look at. A refused model is kept without an alias.
        ``compare`` may take its time; if the champion is another one afterwards it is asked again.
        """
        for _ in range(ROUNDS):
            champion, found = self._champion(), self._find()
            reigns = found is not None and champion is not None and found.version == champion.version
            verdict = compare(None if reigns else champion)
            if version := self._place(verdict, champion):
                return version, verdict
        raise RegistryError(f"The champion of {self._params.name!r} changed {ROUNDS} times meanwhile: register again.")

    def _champion(self) -> "ModelVersion | None":
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version_by_alias(self._params.name, self._params.champion_alias)
        except MlflowException as error:
            if not store.is_missing(error):
                raise
            return None

    def _find(self) -> "ModelVersion | None":
        model, evaluation = self._package.model.digest, self._package.evaluation.fingerprint
        return find(self._client, self._params.name, model, evaluation)

    def _place(self, verdict: Verdict, champion: "ModelVersion | None") -> Version | None:
        """Makes the version and gives it its tags and alias; None where the champion is not that of the verdict."""
        from latentflow.registry import ledger, promotion

        name, number = self._params.name, str(champion.version) if champion else ""
        # On one machine the second of two waits for the version of the first; over a network it may upload in vain.
        with store.store_lock():
            if self._find() is None and self._uploaded is None:
                self._uploaded = self._upload()
            ledger.create_model(self._client, name)
            aliases = promotion.Aliases.of(self._params)
            with ledger.turn(self._client, name, aliases, "register") as turn:
                if turn.aliases()[aliases.champion] != number:
                    return None
                version = self._find() or self._create()
                if str(version.version) == number:
                    return self._seen(version, self._params.champion_alias)
                self._tell(version, verdict, number)
                alias = self._move(turn, version, verdict)
                return self._seen(self._client.get_model_version(name, version.version), alias)

    def _seen(self, version: "ModelVersion", alias: str) -> Version:
        told = [version.tags.get(mark, "") for mark in (marks.STATUS, marks.CHAMPION, marks.RULES)]
        return Version(version.name, str(version.version), alias, str(version.run_id or ""), *told)

    def _move(self, turn: "Turn", version: "ModelVersion", verdict: Verdict) -> str:
        """Gives the alias that follows from the verdict; a refused version loses that of the challenger."""
        from latentflow.registry import promotion

        aliases, number = promotion.Aliases.of(self._params), str(version.version)
        if verdict.status.refused:
            if turn.aliases()[aliases.challenger] == number:
                turn.move({aliases.challenger: ""})
            return ""
        if not verdict.champion:
            promotion.crown(self._client, turn, version, aliases, "the first to pass the gate")
            return aliases.champion
        if verdict.status is Status.PASSED and self._params.promote == "when_passed":
            reason = f"passed the gate against version {verdict.champion}, register.promote is when_passed"
            promotion.crown(self._client, turn, version, aliases, reason)
            return aliases.champion
        turn.move({aliases.challenger: number})
        return aliases.challenger

    def _tell(self, version: "ModelVersion", verdict: Verdict, champion: str) -> None:
        """Writes the verdict on the version: tags to search for and a description to read."""
        from latentflow.registry.card import summary

        told = {
            marks.STATUS: verdict.status.value,
            marks.CHAMPION: champion,
            marks.RULES: rules_key(self._params.gate, champion),
            marks.REASONS: " ".join(verdict.reasons)[:_TAG_LENGTH],
        }
        for key, value in told.items():
            if version.tags.get(key) != value:
                self._client.set_model_version_tag(version.name, version.version, key, value)
        description = summary(self._package, verdict)
        if version.description != description:
            self._client.update_model_version(version.name, version.version, description)

    def _upload(self) -> Upload:
        from latentflow.registry import judged, tracking
        from latentflow.registry.packaging import log_model

        package = self._package
        model_run = tracking.model_run(self._client, package.model, self._metrics)
        what = judged.key(package.model.digest, package.generation)
        evaluation_run = tracking.record_judged(self._client, model_run, package.evaluation, package.results, what)
        model_id = log_model(self._client, package, model_run)
        _copy_metrics(self._client, evaluation_run, model_id)
        return Upload(model_id, model_run, evaluation_run)

    def _create(self) -> "ModelVersion":
        assert self._uploaded
        evaluation = self._client.get_run(self._uploaded.evaluation_run)
        # A local registry looks the model up through MLflow's global address instead of the client's own.
        with store.environment("MLFLOW_TRACKING_URI", tracking_uri()):
            return self._client.create_model_version(
                self._params.name,
                source=f"models:/{self._uploaded.model_id}",
                run_id=self._uploaded.model_run,
                model_id=self._uploaded.model_id,
                tags=version_tags(self._package, evaluation),
            )


def find(client: "MlflowClient", name: str, model_digest: str, evaluation: str) -> "ModelVersion | None":
    """The version that holds this model with this evaluation, or None."""
    pair = f"tags.`{marks.MODEL_DIGEST}` = '{model_digest}' and tags.`{marks.EVALUATION}` = '{evaluation}'"
    query = f"name = '{name}' and {pair}"
    ready = [version for version in client.search_model_versions(query) if version.status == "READY"]
    return min(ready, key=lambda version: int(version.version)) if ready else None


def version_tags(package: "Package", evaluation_run: "Run") -> dict[str, str]:
    """Identity, lineage and figures of a version; the first two tags are what `find` looks for."""
    from latentflow.registry import judged

    metrics = {f"{marks.METRIC}{name}": f"{value:.6g}" for name, value in package.evaluation.metrics.items()}
    return {
        marks.MODEL_DIGEST: package.model.digest,
        marks.EVALUATION: package.evaluation.fingerprint,
        marks.EVALUATION_RUN: evaluation_run.info.run_id,
        marks.JUDGED: judged.key(package.model.digest, package.generation),
        "latentflow.pipeline_class": package.model.pipeline_class,
        "latentflow.reference_digest": str(package.protocol.get("reference_digest", "")),
        **tags(package.model.lineage),
        **_of_evaluation(evaluation_run),
        **metrics,
    }


def _of_evaluation(run: "Run") -> dict[str, str]:
    """With which code and image it was judged, where the run can tell."""
    wanted = ("git_commit", "git_dirty", "image", "kfp_run_id")
    found = {name: run.data.tags.get(f"latentflow.{name}", "") for name in wanted}
    return {f"latentflow.evaluation_{name}": value for name, value in found.items() if value}


def _copy_metrics(client: "MlflowClient", run_id: str, model_id: str) -> None:
    """Attaches the evaluation's figures to the uploaded model: the same points, so the run keeps one of each."""
    from mlflow.entities import Metric

    points: list[Any] = []
    for name in client.get_run(run_id).data.metrics:
        last = client.get_metric_history(run_id, name)[-1]
        points.append(Metric(name, last.value, last.timestamp, last.step, model_id=model_id, run_id=run_id))
    client.log_batch(run_id, metrics=points)
