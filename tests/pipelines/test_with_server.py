"""The whole pipeline, tiny, with a real MLflow server that is killed while it trains and comes back."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow_servers import Server, postgresql

from latentflow.params import load
from latentflow.registry import journal
from pipelines import local
from pipelines.configuration import PARAMS, as_settings, read_overrides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CHANGES = ["train.steps=200", "train.log_every=2", "train.validate_every=100", "train.sample_every=50"]


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()

    def run(database: str) -> Iterator[Server]:
        made = Server(folder, database)
        made.start()
        try:
            yield made
        finally:
            made.kill()

    if request.param == "sqlite":
        yield from run(f"sqlite:///{folder / 'mlflow.db'}")
    else:
        with postgresql(folder) as database:
            yield from run(database)


class Project:
    """A folder with the tiny parameters, and the command line in it."""

    def __init__(self, folder: Path, uri: str) -> None:
        folder.mkdir()
        tiny = load(PARAMS, [*as_settings(read_overrides(local.TINY)), *CHANGES])
        (folder / "params.yaml").write_text(yaml.safe_dump(tiny.model_dump(mode="json"), sort_keys=False))
        self.folder, self.work = folder, folder / "work"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "LATENTFLOW_"))}
        self.environment = {
            **kept,
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "LATENTFLOW_STORE": str(self.work),
            "PYTHONPATH": str(PARAMS.parent),
        }

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "latentflow.cli", *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *arguments: str) -> str:
        process = self.start(*arguments)
        said, _ = process.communicate()
        assert process.returncode == 0, said[-6000:]
        return said

    def waiting(self) -> int:
        """How many things a running training could not tell its server."""
        return len(list(self.work.glob(f"train/*/{journal.NAME}/0*")))


def test_a_server_that_is_killed_while_the_pipeline_trains(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    project = Project(tmp_path / "project", server.uri)
    for step in ("ingest", "autoencoder", "encode"):
        project.run(step)
    training = project.start("train")
    client = MlflowClient(server.uri)
    while training.poll() is None:
        found = client.get_experiment_by_name("latentflow")
        if found and any("train/loss" in run.data.metrics for run in client.search_runs([found.experiment_id])):
            break
        time.sleep(0.2)
    server.kill()
    while training.poll() is None and project.waiting() < 5:
        time.sleep(0.1)
    server.start()
    said, _ = training.communicate()
    assert training.returncode == 0, said[-6000:]
    project.run("evaluate")
    project.run("register")
    model = json.loads((project.folder / "data/model/manifest.json").read_text())
    version = json.loads((project.folder / "data/registration/manifest.json").read_text())
    run = client.get_run(version["mlflow_run_id"])
    assert run.info.run_id == model["mlflow_run_id"]
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(2, 201, 2))
    assert [point.step for point in client.get_metric_history(run.info.run_id, "validation/loss")] == [100, 200]
    files = [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")]
    pictures = {int(name.replace("%", "+").split("+")[2]) for name in files if name.endswith(".png")}
    assert pictures == {50, 100, 150, 200}
    (judged,) = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert {"gallery.png", "report.html"} <= {file.path for file in client.list_artifacts(judged.info.run_id)}
    assert project.waiting() == 0
    uri = f"models:/{version['name']}/{version['version']}"
    project.run("pull", uri, "--out", "pulled")
    project.run("generate", "--model", uri, "--prompt", "red heart", "--out", "heart.png")
    assert (project.folder / "heart.png").stat().st_size > 0
