"""Evaluations in the registry, by what was judged: found again instead of made again, and kept where they were made."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflow.errors import LatentflowError
from latentflow.evaluation import units
from latentflow.files import atomic_folder, digest_json
from latentflow.manifest import FILE, EvaluationManifest
from latentflow.registry import marks, store, tracking
from latentflow.registry.gate import Judged, differences
from latentflow.registry.pulling import fetch
from latentflow.workspace import store as work_store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

METRICS, PROTOCOL = "metrics.json", "protocol.json"
_NEEDED = {FILE, METRICS, PROTOCOL, units.FILE}
_LOOKED_AT = 50

Judge = Callable[[Path, str, Path], None]
"""Judges a pipeline folder of a digest and writes the evaluation folder."""

log = logging.getLogger(__name__)


def key(model_digest: str, generation: Mapping[str, Any]) -> str:
    """What stands for a model as it ships: its weights, and the sampler, steps and guidance that it is called with."""
    return digest_json([model_digest, generation["sampler"], int(generation["steps"]), float(generation["guidance"])])


def read(folder: Path) -> Judged:
    """An evaluation folder as the gate reads it. Raises LatentflowError for one of an older latentflow."""
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return Judged(metrics, units.read_units(folder), protocol_of(folder))
    except OSError as error:
        raise LatentflowError(f"{folder} is no evaluation ({error}): run `latentflow evaluate` again.") from error


def protocol_of(folder: Path) -> dict[str, Any]:
    """How an evaluation was made."""
    protocol: dict[str, Any] = json.loads((folder / PROTOCOL).read_text(encoding="utf-8"))
    return protocol


def of_champion(
    client: "MlflowClient", version: "ModelVersion", protocol: Mapping[str, Any], judge: Judge | None
) -> Path:
    """The evaluation folder of a registered version under ``protocol``: from the registry, else made now and kept.

    Raises LatentflowError, which says what to do, where there is none and none can be made.
    """
    pipeline = None
    what = version.tags.get(marks.JUDGED, "")
    if not what:
        pipeline = fetch(client, version)
        what = key(_digest(version), json.loads((pipeline / "generation.json").read_text(encoding="utf-8")))
    if found := _stored(client, version, what, protocol):
        return found
    if judge is None:
        raise LatentflowError(
            f"The registry holds no evaluation of the champion, version {version.version}, under this protocol: give "
            "--encoded and --records of the data that this model was judged on, and it is judged now."
        )
    log.info("judging the champion, version %s, under the same protocol", version.version)
    folder = work_store() / "judged" / digest_json([what, dict(protocol)])[:32]
    judge(pipeline or fetch(client, version), _digest(version), folder)
    tracking.record_judged(client, str(version.run_id), EvaluationManifest.read(folder), folder, what)
    return folder


def _digest(version: "ModelVersion") -> str:
    return str(version.tags.get(marks.MODEL_DIGEST, ""))


def _stored(client: "MlflowClient", version: "ModelVersion", what: str, protocol: Mapping[str, Any]) -> Path | None:
    """The newest evaluation of ``what`` in the registry that compares with ``protocol``, downloaded."""
    experiment = client.get_run(version.run_id).info.experiment_id
    query = f"tags.`{marks.JUDGED}` = '{what}'"
    runs = [run.info.run_id for run in client.search_runs([experiment], query, max_results=_LOOKED_AT)]
    own = version.tags.get(marks.EVALUATION_RUN, "")
    for run_id in [own, *(run for run in runs if run != own)] if own else runs:
        if (folder := _download(client, run_id)) and not differences(protocol, protocol_of(folder)) - {"device"}:
            return folder
    return None


def _download(client: "MlflowClient", run_id: str) -> Path | None:
    """A run's evaluation folder, kept in the work store; None where the run holds none."""
    target = work_store() / "evaluations" / run_id
    if (target / FILE).is_file():
        return target
    if not _NEEDED.issubset(file.path for file in client.list_artifacts(run_id)):
        return None
    with atomic_folder(target) as folder, store.environment("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"):
        client.download_artifacts(run_id, "", str(folder))
    return target
