"""What a run is told while its store is away: kept on disk, sent later, by this process or by another, and once."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from registry_helpers import INPUTS, LINEAGE, MODEL_METRICS, model_manifest, write_evaluation, write_model
from typer.testing import CliRunner

from latentflow.cli import app
from latentflow.registry import delivering, journal, store, tracking
from latentflow.steps import register
from latentflow.workspace import work_folder, work_place

PARAMS = {"train.steps": "30"}
PICTURE = np.zeros((4, 4, 3), dtype=np.uint8)


def steps_of(run_id: str, metric: str = "loss") -> list[int]:
    return [point.step for point in store.connect().get_metric_history(run_id, metric)]


def pictures_of(run_id: str) -> list[str]:
    files = [Path(file.path).name for file in store.connect().list_artifacts(run_id, "images")]
    return sorted("+".join(name.replace("%", "+").split("+")[:3]) for name in files if name.endswith(".png"))


def tell(run: tracking.Run, steps: range, folder: Path) -> None:
    for step in steps:
        run.log_metrics({"loss": 1 / step, "not a number": math.nan}, step)
    run.log_image(PICTURE, "samples/grid", steps[-1])
    run.log_dataset("encoded", "9" * 64, "data/encoded", "training")
    (folder / "report").mkdir(parents=True, exist_ok=True)
    (folder / "report" / "page.html").write_text("<p>")
    run.log_artifact(folder / "report")
    run.log_artifact(folder / "report" / "page.html", "single")
    run.mark("preempted_at_step", "3")


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch, closed_port: int, tmp_path: Path) -> Callable[[], None]:
    """The store is a server that does not answer; the function that is given back goes to one that does."""
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "work"))

    def back() -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

    return back


def test_a_store_that_stays_away_is_told_later_by_a_command(
    away: Callable[[], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with work_folder("train", "f" * 64) as work:
        kept = work / journal.NAME
        with tracking.training_run(PARAMS, LINEAGE, kept=kept) as run:
            tell(run, range(1, 4), tmp_path)
    said = "not told yet: figures of 3 steps, 1 pictures, 2 artifacts, 1 dataset, 1 tags, how it ended"
    assert said in caplog.text
    assert f"kept in {kept}; `latentflow deliver` sends it" in caplog.text
    refused = CliRunner().invoke(app, ["deliver"])
    assert "does not answer" in str(refused.exception)
    away()
    assert "what waited of 1 runs" in CliRunner().invoke(app, ["deliver"]).stdout
    client = store.connect()
    found = tracking.find_training(client, run.id)
    assert found != run.id
    there = client.get_run(found)
    assert there.info.status == "FINISHED"
    assert there.data.params == PARAMS
    assert there.data.tags["latentflow.git_commit"] == "c0ffee"
    assert there.data.tags["latentflow.preempted_at_step"] == "3"
    assert there.inputs.dataset_inputs[0].dataset.name == "encoded"
    assert steps_of(found) == [1, 2, 3]
    assert math.isnan(client.get_metric_history(found, "not a number")[0].value)
    assert pictures_of(found) == ["samples~grid+step+3"]
    assert [file.path for file in client.list_artifacts(found, "report")] == ["report/page.html"]
    assert [file.path for file in client.list_artifacts(found, "single")] == ["single/page.html"]
    assert not kept.exists()
    assert "Nothing waits" in CliRunner().invoke(app, ["deliver"]).stdout


def test_a_resumed_process_sends_what_the_one_before_it_could_not(away: Callable[[], None], tmp_path: Path) -> None:
    kept = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt), tracking.training_run(PARAMS, LINEAGE, kept=kept) as first:
        tell(first, range(1, 5), tmp_path)
        raise KeyboardInterrupt
    away()
    # The checkpoint was made at step 2, and its process goes on from there.
    with tracking.training_run(PARAMS, LINEAGE, run_id=first.id, checkpoint_step=2, kept=kept) as second:
        assert store.connect().get_run(second.id).info.status == "RUNNING"
        tell(second, range(3, 7), tmp_path)
    assert steps_of(second.id) == [1, 2, 3, 4, 5, 6]
    assert pictures_of(second.id) == ["samples~grid+step+4", "samples~grid+step+6"]
    there = store.connect().get_run(second.id)
    assert (there.info.status, there.data.tags[tracking.ORIGINAL]) == ("FINISHED", first.id)
    assert not kept.exists()


def test_a_training_that_was_killed_before_its_first_checkpoint_keeps_its_run(
    away: Callable[[], None], tmp_path: Path
) -> None:
    kept = tmp_path / "journal"
    script = f"""
import os, signal
from pathlib import Path
from latentflow.registry.tracking import training_run
with training_run({PARAMS!r}, {{}}, kept=Path({str(kept)!r})) as run:
    run.log_metrics({{"loss": 1.0}}, 1)
    run.log_metrics({{"loss": 0.5}}, 2)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], env=dict(os.environ), check=False)
    assert killed.returncode == -signal.SIGKILL
    away()
    with tracking.training_run(PARAMS, LINEAGE, kept=kept) as run:
        run.log_metrics({"loss": 1.0}, 1)
        run.log_metrics({"loss": 0.5}, 2)
        run.log_metrics({"loss": 0.2}, 3)
    assert steps_of(run.id) == [1, 2, 3]


def test_what_arrived_although_its_answer_was_lost_is_not_sent_twice(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store takes the figures and the picture, and the connection breaks before it can say so."""
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(tracking, "PAUSE_SECONDS", 0.0)

    def lost(method: str) -> Callable[..., None]:
        real = getattr(MlflowClient, method)

        def call(*arguments: object, **named: object) -> None:
            real(*arguments, **named)
            raise OSError("connection reset")

        return call

    with tracking.training_run(PARAMS, LINEAGE, kept=tmp_path / "journal") as run:
        with monkeypatch.context() as broken:
            broken.setattr(MlflowClient, "log_batch", lost("log_batch"))
            run.log_metrics({"loss": 1.0}, 1)
        with monkeypatch.context() as broken:
            broken.setattr(MlflowClient, "log_image", lost("log_image"))
            run.log_image(PICTURE, "samples", 1)
        run.log_metrics({"loss": 1.0, "other": 2.0}, 2)
    assert steps_of(run.id) == [1, 2]
    assert pictures_of(run.id) == ["samples+step+1"]
    assert not (tmp_path / "journal").exists()


def test_what_the_store_refuses_does_not_hold_up_the_rest(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "journal"
    with tracking.training_run(PARAMS, LINEAGE, kept=kept) as run:
        monkeypatch.setattr(run, "_retry_at", math.inf)
        run.log_metrics({"loss": 1.0}, 1)
        run.log_metrics({"x" * 300: 1.0}, 1)  # longer than MLflow's names may be
        run.log_metrics({"loss": 0.5}, 2)
    assert steps_of(run.id) == [1, 2]
    assert "MLflow refuses something of run" in caplog.text
    assert len(list((kept / "refused").iterdir())) == 1
    assert store.connect().get_run(run.id).info.status == "FINISHED"


def test_register_delivers_what_its_model_and_evaluation_could_not(
    away: Callable[[], None], tiny_pipeline: Path, tmp_path: Path
) -> None:
    with (
        work_folder("train", "f" * 64) as work,
        tracking.training_run(PARAMS, LINEAGE, kept=work / journal.NAME) as trained,
    ):
        trained.log_metrics({"train/loss": 0.5}, 1)
    model = write_model(tmp_path / "model", tiny_pipeline)
    manifest = model_manifest(trained.id)
    manifest.write(model)
    evaluation = write_evaluation(tmp_path / "evaluation", "e" * 64, guidance=2.0)
    with work_folder("evaluate", "e" * 64) as work:
        kept = work / journal.NAME
        with tracking.evaluation_run(manifest, "e" * 64, PARAMS, MODEL_METRICS, kept) as judged:
            judged.log_metrics({"retrieval/train/top5": 0.2})
            judged.log_artifact(evaluation / "protocol.json")
    assert (judged.id, judged.parent_id) == ("", "")
    away()
    registered = register.run(INPUTS, model, evaluation, tmp_path / "registration")
    client = store.connect()
    assert steps_of(registered.mlflow_run_id, "train/loss") == [1]
    assert client.get_run(registered.mlflow_run_id).data.tags[tracking.ORIGINAL] == trained.id
    (child,) = client.search_runs(
        [store.experiment_id(client)], f"tags.`{tracking.PARENT}` = '{registered.mlflow_run_id}'"
    )
    assert "protocol.json" in [file.path for file in client.list_artifacts(child.info.run_id)]
    assert len(client.get_metric_history(child.info.run_id, "retrieval/train/top5")) == 1
    assert not delivering.waiting()


def test_what_a_running_process_writes_is_left_to_it(away: Callable[[], None], tmp_path: Path) -> None:
    with (
        work_folder("train", "f" * 64) as work,
        tracking.training_run(PARAMS, LINEAGE, kept=work / journal.NAME) as run,
    ):
        run.log_metrics({"loss": 1.0}, 1)
        script = "from latentflow.registry import delivering; assert not delivering.deliver(delivering.waiting())"
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)
        assert (work / journal.NAME / "run.json").is_file()
    assert len(journal.Journal(work_place("train", "f" * 64) / journal.NAME).entries()) == 2


def test_what_a_kill_or_another_version_left_does_not_stop_a_training(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "journal"
    half, foreign, refused = kept / f"{0:010d}", kept / f"{1:010d}", kept / "refused" / f"{2:010d}"
    for folder in (half, foreign, refused):
        folder.mkdir(parents=True)
    (half / "picture.png").write_bytes(b"")
    (foreign / "entry.json").write_text('{"kind": "hologram", "time": 1}')
    (kept / "run.json").write_text('{"kind": "another"}')
    with tracking.training_run(PARAMS, LINEAGE, kept=kept) as run:
        run.log_metrics({"loss": 1.0}, 1)
        run.log_metrics({"x" * 300: 1.0}, 2)
    assert steps_of(run.id) == [1]
    assert "cannot be read and is put aside" in caplog.text
    assert len(list((kept / "refused").iterdir())) == 3
    assert not half.exists()


def test_a_full_disk_does_not_stop_a_training(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with tracking.training_run(PARAMS, LINEAGE, kept=tmp_path / "journal") as run:
        run.log_metrics({"loss": 1.0}, 1)
        with monkeypatch.context() as broken:
            broken.setattr(journal, "copy_tree_or_file", full)
            run.log_image(PICTURE, "samples", 1)
        run.log_metrics({"loss": 0.5}, 2)
    assert steps_of(run.id) == [1, 2]
    assert "will not be told of picture, which could not be kept: [Errno 28]" in caplog.text
