"""The chain from a registered version back to data, code and the model that it began with, as the registry knows it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from latentflow.errors import LatentflowError
from latentflow.registry import marks, store
from latentflow.registry.card import HEADLINES
from latentflow.registry.lineage import PARAMS
from latentflow.registry.pulling import ModelUri, find_model, find_version, parse

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

_OURS = "latentflow."
_DEPTH = 10
DVC = "dvc/"


@dataclass(frozen=True)
class Link:
    """One version: what it is, how it was judged, what it was made of; unknown texts are "".

    ``data`` has source, revision, license, credit; ``digests`` those of the records, the encoded set, the autoencoder
    and the parent's weights; ``dvc`` DVC's md5 by path; ``code`` git_commit, git_dirty, image, kfp_run_id, ...;
    ``parameters`` those of training and evaluation.
    """

    address: str
    aliases: list[str]
    created: str
    model_digest: str
    pipeline_class: str
    fingerprint: str
    run: str
    evaluation_run: str
    evaluation: str
    figures: dict[str, float]
    status: str
    champion: str
    moves: dict[str, str]
    data: dict[str, str]
    digests: dict[str, str]
    dvc: dict[str, str]
    code: dict[str, str]
    parameters: dict[str, str] = field(repr=False)
    parent: "Link | str" = ""


def chain(client: "MlflowClient", wanted: ModelUri) -> Link:
    """The version's link, with that of the model it was fine-tuned from, and so on.

    A parent that is no version of this registry is given by its address alone.
    """
    return _link(client, find_version(client, wanted), _DEPTH)


def _link(client: "MlflowClient", version: "ModelVersion", depth: int) -> Link:
    ours = {key.removeprefix(_OURS): str(value) for key, value in version.tags.items() if key.startswith(_OURS)}
    aliases = find_model(client, version.name).aliases
    metric = marks.METRIC.removeprefix(_OURS)
    code = ("git_commit", "git_dirty", "latentflow_version", "image", "kfp_run_id", "dvc_stage")
    judged = ("evaluation_git_commit", "evaluation_image", "evaluation_kfp_run_id")
    return Link(
        address=f"models:/{version.name}/{version.version}",
        aliases=sorted(alias for alias, number in aliases.items() if str(number) == str(version.version)),
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        model_digest=ours.get("model_digest", ""),
        pipeline_class=ours.get("pipeline_class", ""),
        fingerprint=ours.get("fingerprint", ""),
        run=str(version.run_id or ""),
        evaluation_run=ours.get("evaluation_run_id", ""),
        evaluation=ours.get("evaluation", ""),
        figures={name: float(ours[metric + name]) for name in HEADLINES if metric + name in ours},
        status=str(version.tags.get(marks.STATUS, "")),
        champion=str(version.tags.get(marks.CHAMPION, "")),
        moves={key: value for key, value in ours.items() if key.startswith(("promoted_", "retired_"))},
        data={key.removeprefix("data_"): value for key, value in ours.items() if key.startswith("data_")},
        digests={key.removeprefix("digest_"): value for key, value in ours.items() if key.startswith("digest_")},
        dvc={key.removeprefix(DVC): value for key, value in ours.items() if key.startswith(DVC)},
        code={key: ours[key] for key in (*code, *judged) if key in ours},
        parameters=_parameters(client, [str(version.run_id or ""), ours.get("evaluation_run_id", "")]),
        parent=_parent(client, ours.get("parent_model", ""), depth),
    )


def _parameters(client: "MlflowClient", runs: list[str]) -> dict[str, str]:
    """What training and evaluation were told, from their runs; a run that was deleted tells nothing."""
    from mlflow.exceptions import MlflowException

    found: dict[str, str] = {}
    for run in filter(None, runs):
        try:
            found |= {name.removeprefix(PARAMS): value for name, value in client.get_run(run).data.params.items()}
        except MlflowException as error:
            if not store.is_missing(error):
                raise
    return found


def _parent(client: "MlflowClient", address: str, depth: int) -> Link | str:
    if not address.startswith("models:/") or not depth:
        return address
    try:
        return _link(client, find_version(client, parse(address)), depth - 1)
    except LatentflowError:
        return address
