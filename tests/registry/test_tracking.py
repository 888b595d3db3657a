"""Runs: which one is written, what it holds after a resume, how it ends, and what happens without a store."""

import logging
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from registry_helpers import FOREIGN_RUN, INPUTS, LINEAGE, MODEL_METRICS, model_manifest

from latentflow.errors import RegistryError
from latentflow.registry import store, tracking
from latentflow.registry.lineage import flat_params, lineage_from_environment, split_params, tags, with_params

PARAMS = {"train.steps": "30", "model.unet.channels": "[8, 16]"}
PICTURE = np.zeros((4, 4, 3), dtype=np.uint8)


def steps_of(run_id: str, metric: str) -> list[int]:
    return [point.step for point in store.connect().get_metric_history(run_id, metric)]


def test_a_run_holds_parameters_lineage_metrics_pictures_and_datasets(project: Path) -> None:
    with tracking.training_run(PARAMS, LINEAGE) as run:
        run.log_metrics({"loss": 1.0, "loss=strange": 2.0}, step=1)
        run.log_image(PICTURE, "samples/grid", step=1)
        run.log_dataset("encoded", "9" * 64, "data/encoded", "training")
    client = store.connect()
    kept = client.get_run(run.id)
    assert kept.info.status == "FINISHED"
    assert kept.data.params == PARAMS
    assert kept.data.tags["latentflow.git_commit"] == kept.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert kept.data.metrics == {"loss": 1.0, "loss_strange": 2.0}
    assert kept.inputs.dataset_inputs[0].dataset.digest == "9" * 36
    assert any("samples~grid+step+1+" in file.path for file in client.list_artifacts(run.id, "images"))
    assert (project / "mlruns" / "artifacts").is_dir()


def test_run_id_comes_from_the_checkpoint_then_the_environment_then_is_new(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking.training_run(PARAMS, LINEAGE) as first:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", first.id)
    with tracking.training_run(PARAMS, LINEAGE) as injected:
        assert injected.id == first.id
    monkeypatch.delenv("MLFLOW_RUN_ID")
    with tracking.training_run(PARAMS, LINEAGE) as new:
        assert new.id != first.id
    monkeypatch.setenv("MLFLOW_RUN_ID", new.id)
    with tracking.training_run(PARAMS, LINEAGE, run_id=first.id, checkpoint_step=10) as resumed:
        assert resumed.id == first.id
    assert store.connect().get_run(first.id).data.tags[tracking.RESUMED] == "10"


def test_a_resumed_run_goes_on_without_repeating_points(project: Path) -> None:
    def train(run: tracking.Run, steps: tuple[int, ...]) -> None:
        for step in steps:
            run.log_metrics({"loss": 1 / step}, step)
            if step == 2:
                run.log_image(PICTURE, "samples", 2)

    with pytest.raises(ZeroDivisionError), tracking.training_run(PARAMS, LINEAGE) as run:
        train(run, (1, 2, 3, 0))
    client = store.connect()
    assert client.get_run(run.id).info.status == "FAILED"
    with tracking.training_run(PARAMS, LINEAGE, run_id=run.id, checkpoint_step=1) as resumed:
        assert client.get_run(run.id).info.status == "RUNNING"
        train(resumed, (2, 3, 4))
    assert steps_of(run.id, "loss") == [1, 2, 3, 4]
    assert len(client.list_artifacts(run.id, "images")) == 2  # the picture and its thumbnail, once
    assert client.get_run(run.id).info.status == "FINISHED"


def test_an_unknown_id_is_rebuilt_once_and_found_again(project: Path) -> None:
    with tracking.training_run(PARAMS, LINEAGE, run_id=FOREIGN_RUN) as rebuilt:
        pass
    assert rebuilt.id != FOREIGN_RUN
    assert store.connect().get_run(rebuilt.id).data.tags[tracking.ORIGINAL] == FOREIGN_RUN
    with tracking.training_run(PARAMS, LINEAGE, run_id=FOREIGN_RUN) as again:
        assert again.id == rebuilt.id


def test_a_changed_parameter_of_an_adopted_run_keeps_its_first_value(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.training_run(PARAMS, LINEAGE) as run:
        pass
    with tracking.training_run({**PARAMS, "train.steps": "31"}, LINEAGE, run_id=run.id):
        pass
    assert store.connect().get_run(run.id).data.params == PARAMS
    assert "train.steps" in caplog.text


def test_evaluations_are_children_found_by_fingerprint(project: Path) -> None:
    with tracking.training_run(PARAMS, LINEAGE) as trained:
        pass
    manifest = model_manifest(trained.id)
    ids = []
    for fingerprint in ("a" * 64, "a" * 64, "b" * 64):
        with tracking.evaluation_run(manifest, fingerprint, {"evaluate.guidance": fingerprint[0]}) as run:
            assert run.parent_id == trained.id
            run.log_metrics({"top5": 0.5})
        ids.append(run.id)
    assert ids[0] == ids[1] != ids[2]
    assert steps_of(ids[0], "top5") == [0]
    assert store.connect().get_run(ids[2]).data.tags["mlflow.parentRunId"] == trained.id


@pytest.mark.parametrize("run_id", [FOREIGN_RUN, ""], ids=["another store", "trained untracked"])
def test_a_store_that_does_not_know_the_model_rebuilds_its_run(project: Path, run_id: str) -> None:
    manifest = model_manifest(run_id)
    with tracking.evaluation_run(manifest, "a" * 64, model_metrics=MODEL_METRICS) as first:
        pass
    with tracking.evaluation_run(manifest, "b" * 64, model_metrics=MODEL_METRICS) as second:
        pass
    assert first.parent_id == second.parent_id
    parent = store.connect().get_run(first.parent_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == MODEL_METRICS
    assert parent.data.params == {"train.steps": "30"}
    assert parent.data.tags["latentflow.records_digest"] == LINEAGE["records_digest"]
    assert parent.data.tags[tracking.ORIGINAL] == (run_id or "untracked-" + "d" * 26)


def test_sigterm_ends_the_run_as_killed(project: Path) -> None:
    script = """
import time
from latentflow.registry.tracking import training_run
with training_run({"train.steps": "3"}, {}) as run:
    print(run.id, flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert store.connect().get_run(run_id).info.status == "KILLED"


def test_ctrl_c_ends_the_run_as_killed(project: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tracking.training_run({}, {}) as run:
        raise KeyboardInterrupt
    assert store.connect().get_run(run.id).info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_failing_store_warns_once_and_gets_its_metrics_later(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    def fail(*args: object, **kwargs: object) -> None:
        raise MlflowException("gone")

    with tracking.training_run({}, {}) as run:
        with monkeypatch.context() as broken:
            broken.setattr(MlflowClient, "log_batch", fail)
            for step in (1, 2):
                run.log_metrics({"loss": 1.0}, step)
        run.log_image(PICTURE, "samples", 2)
    assert steps_of(run.id, "loss") == [1, 2]
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1


def test_without_a_server_training_goes_on(closed_port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    with tracking.training_run(PARAMS, LINEAGE) as run:
        run.log_metrics({"loss": 1.0}, 1)
        run.log_image(PICTURE, "samples", 1)
        run.log_dataset("encoded", "9", "data", "training")
        run.log_artifact(tmp_path)
    assert len(run.id) == 32  # one of our own, for the checkpoint
    assert f"http://127.0.0.1:{closed_port}" in caplog.text
    assert "never told: figures of 1 steps, 1 pictures, 1 artifacts" in caplog.text
    assert time.monotonic() - began < 5


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "REACH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(RegistryError, match="does not answer") as caught:
            store.connect()
    assert "secret" not in str(caught.value)


def test_lineage_from_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "LATENTFLOW_GIT_SHA": "abc",
        "DVC_STAGE": "train",
        "KFP_RUN_ID": "k1",
        "LATENTFLOW_IMAGE": "sha256:1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    lineage = lineage_from_environment()
    assert lineage.pop("latentflow_version")
    assert lineage == {"git_commit": "abc", "dvc_stage": "train", "kfp_run_id": "k1", "image": "sha256:1"}
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", "init", "-q"], check=True)
    for name, text in {"code.py": "1", "dvc.lock": "stages: {}"}.items():
        Path(name).write_text(text)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "m"], check=True)
    Path("dvc.lock").write_text("schema: '2.0'")
    assert len(lineage_from_environment()["git_commit"]) == 40
    assert lineage_from_environment()["git_dirty"] == "false"
    Path("code.py").write_text("2")
    assert lineage_from_environment()["git_dirty"] == "true"


def test_parameters_travel_in_the_lineage() -> None:
    params = flat_params(INPUTS)
    assert {"register.name": "tiny", "register.gate.confidence": "0.95"}.items() <= params.items()
    assert split_params(with_params({"commit": "c"}, params)) == ({"commit": "c"}, params)
    assert tags(with_params({"commit": "c"}, params)) == {"latentflow.commit": "c"}
