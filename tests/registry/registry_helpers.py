"""Manifests of a model and of its evaluations, as the steps before `register` write them."""

import json
import shutil
from pathlib import Path

from latentflow.manifest import EvaluationManifest, ModelManifest
from latentflow.params import RegisterInputs

NAME = "tiny"
INPUTS = RegisterInputs.model_validate(
    {"register": {"name": NAME, "champion_alias": "champion", "challenger_alias": "challenger"}}
)

LINEAGE = {
    "git_commit": "c0ffee",
    "data_license": "CC-BY-4.0",
    "data_credit": "Pictures by somebody who wants to be named",
    "records_digest": "r" * 64,
    "params.train.steps": "30",
}
MODEL_METRICS = {"loss": 0.75, "heldout_loss": 0.8}
FOREIGN_RUN = "0123456789abcdef0123456789abcdef"


def model_manifest(run_id: str = "") -> ModelManifest:
    return ModelManifest(
        digest="d" * 64,
        fingerprint="f" * 64,
        inputs={},
        pipeline_class="StableDiffusionPipeline",
        resolution=16,
        mlflow_run_id=run_id,
        lineage=LINEAGE,
    )


def write_model(folder: Path, pipeline: Path) -> Path:
    """What `latentflow train` leaves behind."""
    shutil.copytree(pipeline, folder / "pipeline")
    (folder / "metrics.json").write_text(json.dumps(MODEL_METRICS))
    model_manifest().write(folder)
    return folder


def write_evaluation(folder: Path, fingerprint: str, guidance: float) -> Path:
    """What `latentflow evaluate` leaves behind, as far as registering reads it."""
    folder.mkdir()
    (folder / "protocol.json").write_text(
        json.dumps({"sampler": "euler", "steps": 3, "guidance": guidance, "seeds": [0]})
    )
    EvaluationManifest(
        digest="a" * 64,
        fingerprint=fingerprint,
        inputs={"model": "d" * 64},
        mlflow_run_id="",
        metrics={"retrieval/train/top5": 0.1 * guidance, "heldout_loss_by_sigma/0.50": 0.8},
    ).write(folder)
    return folder
