"""Manifests of a model and of its evaluations, as the steps before `register` write them, and a clean environment."""

import json
import shutil
from pathlib import Path

import pytest

from latentflow.evaluation.units import write_units
from latentflow.manifest import EvaluationManifest, ModelManifest
from latentflow.params import RegisterInputs, load

NAME = "tiny"


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where nobody has set where MLflow or the work store is."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_RUN_ID",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_EXPERIMENT_ID",
        "LATENTFLOW_STORE",
    ):
        monkeypatch.delenv(name, raising=False)


def inputs(**changes: object) -> RegisterInputs:
    """The project's parameters with a gate that looks at one figure; ``changes`` are fields of `register`."""
    params = load(Path(__file__).parents[2] / "params.yaml")
    gate = {"thresholds": {}, "comparisons": {"retrieval/train/top5": 0.05}, "confidence": 0.95}
    section = params.register_.model_dump() | {"name": NAME, "gate": gate} | changes
    return RegisterInputs.model_validate({"register": section, "evaluate": params.evaluate})


INPUTS = inputs()

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


def write_evaluation(
    folder: Path, fingerprint: str, guidance: float, model: str = "d" * 64, reference: str = "records"
) -> Path:
    """What `latentflow evaluate` leaves behind, as far as registering reads it: 100 captions, hits by the guidance."""
    folder.mkdir(parents=True)
    own = {"sampler": "euler", "steps": 3, "guidance": guidance, "pipeline_class": "StableDiffusionPipeline"}
    same = {"version": 3, "seed": 0, "reference_digest": reference, "train_captions": 100, "device": "cpu"}
    (folder / "protocol.json").write_text(json.dumps(own | same))
    hits = {f"caption {number}": float(number < 10 * guidance) for number in range(100)}
    metrics = {"retrieval/train/top5": 0.1 * guidance, "heldout_loss_by_sigma/0.50": 0.8}
    write_units(folder, {"retrieval/train/top5": hits})
    (folder / "metrics.json").write_text(json.dumps(metrics))
    EvaluationManifest(
        digest="a" * 64, fingerprint=fingerprint, inputs={"model": model}, mlflow_run_id="", metrics=metrics
    ).write(folder)
    return folder
