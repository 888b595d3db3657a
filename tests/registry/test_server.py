"""The same against a real MLflow server that also keeps the artifacts, as in a cluster."""

import json
from pathlib import Path

import pytest
from registry_helpers import INPUTS, LINEAGE, MODEL_METRICS, NAME, model_manifest

from latentflow.registry import pulling, store, tracking
from latentflow.steps import register

pytestmark = pytest.mark.slow


def test_runs_versions_and_pulling_through_a_server(
    server: str, model: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "work"))
    with tracking.training_run({"train.steps": "30"}, LINEAGE) as trained:
        trained.log_metrics(MODEL_METRICS, step=1)
        trained.log_dataset("encoded", "9" * 64, "data/encoded", "training")
    model_manifest(trained.id).write(model)
    first = register.run(INPUTS, model, evaluation, tmp_path / "registration")
    assert first == register.run(INPUTS, model, evaluation, tmp_path / "registration")
    assert (first.version, first.alias, first.mlflow_run_id) == ("1", "champion", trained.id)
    client = store.connect()
    assert client.get_run(trained.id).info.status == "FINISHED"
    assert len(client.search_logged_models([store.experiment_id(client)])) == 1
    folder = pulling.pull(f"models:/{NAME}@champion")
    assert json.loads((folder / "generation.json").read_text())["guidance"] == 2.0
    with pytest.raises(Exception, match="no alias 'best'"):
        pulling.pull(f"models:/{NAME}@best")
