"""A real MLflow store per test, and a real (tiny) model folder with its evaluation."""

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from latentflow.manifest import EvaluationManifest, ModelManifest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LINEAGE = {
    "git_commit": "c0ffee",
    "data_license": "CC-BY-4.0",
    "data_credit": "Pictures by somebody who wants to be named",
    "records_digest": "r" * 64,
    "params.train.steps": "30",
}
MODEL_METRICS = {"loss": 0.75, "heldout_loss": 0.8}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's tables; making them takes seconds, copying the file does not."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def new_store(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Goes to a folder with an empty default store, as a user does who enters a fresh clone."""

    def enter(folder: Path) -> Path:
        (folder / "mlruns").mkdir(parents=True)
        shutil.copy(empty_store, folder / "mlruns" / "mlflow.db")
        monkeypatch.chdir(folder)
        return folder

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "LATENTFLOW_STORE"):
        monkeypatch.delenv(name, raising=False)
    return enter


@pytest.fixture
def project(new_store: Callable[[Path], Path], tmp_path: Path) -> Path:
    return new_store(tmp_path / "project")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import build_pipeline

    return build_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture
def model(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """What `latentflow train` leaves behind."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline, folder / "pipeline")
    (folder / "metrics.json").write_text(json.dumps(MODEL_METRICS))
    model_manifest().write(folder)
    return folder


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


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path / "evaluation", "e" * 64, guidance=2.0)


def write_evaluation(folder: Path, fingerprint: str, guidance: float) -> Path:
    """What `latentflow evaluate` leaves behind, as far as registering reads it."""
    folder.mkdir()
    (folder / "protocol.json").write_text(json.dumps({"steps": 3, "guidance": guidance, "seeds": [0]}))
    EvaluationManifest(
        digest="a" * 64,
        fingerprint=fingerprint,
        inputs={"model": "d" * 64},
        mlflow_run_id="",
        metrics={"retrieval/train/top5": 0.1 * guidance, "heldout_loss_by_sigma/0.50": 0.8},
    ).write(folder)
    return folder


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """MLFLOW_TRACKING_URI names a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    return port
