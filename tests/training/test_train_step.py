"""The train step on a set that encode wrote: interrupted, named, extended, fine-tuned, averaged; and its MLflow run."""

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import trainings
from safetensors.torch import load_file
from trainings import settings, world

from latentflow.errors import EXIT_PREEMPTED, LatentflowError
from latentflow.manifest import EncodedManifest, ModelManifest
from latentflow.params import TrainInputs
from latentflow.steps import average, train


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> train.Sources:
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("LATENTFLOW_CHECKPOINTS", raising=False)
    monkeypatch.chdir(tmp_path)


def checkpoints(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "store" / "train").glob("*/checkpoints/step-*"))


def differing(first: Path, second: Path) -> set[str]:
    """The names of the weights in which the denoisers of two pipelines differ."""
    before, after = (load_file(one / "unet" / "diffusion_pytorch_model.safetensors") for one in (first, second))
    assert before.keys() == after.keys()
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def client():
    from latentflow.registry.store import connect

    return connect()


def _work(folder: Path, chosen: TrainInputs, sources: train.Sources, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    with (folder / "said").open("w") as file:
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    torch.set_num_threads(1)
    train.run(chosen, sources, folder / "model")


def test_a_preempted_training_goes_on_in_the_same_run(sources: train.Sources, tmp_path: Path) -> None:
    chosen = settings(steps=400, checkpoint_every=20, validate_every=100, sample_every=400, log_every=10)
    # A child forked from here would inherit this process's threads half alive.
    process = multiprocessing.get_context("forkserver").Process(
        target=_work, args=(tmp_path, chosen, sources, dict(os.environ))
    )
    process.start()
    while not checkpoints(tmp_path) and process.is_alive():
        time.sleep(0.01)
    process.terminate()
    process.join()
    assert process.exitcode == EXIT_PREEMPTED, (tmp_path / "said").read_text()
    assert not (tmp_path / "model").exists()
    (run,) = client().search_runs([client().get_experiment_by_name("latentflow").experiment_id])
    step = int(checkpoints(tmp_path)[-1].name[5:])
    assert run.info.status == "KILLED"
    assert run.data.tags["latentflow.preempted_at_step"] == str(step)

    manifest = train.run(chosen, sources, tmp_path / "model")
    assert manifest
    assert manifest.mlflow_run_id == run.info.run_id
    finished = client().get_run(run.info.run_id)
    assert finished.info.status == "FINISHED"
    assert finished.data.tags["latentflow.resumed_at_step"] == str(step)
    points = [point.step for point in client().get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(points) == list(range(10, 401, 10))


def test_the_same_parameters_give_the_same_model_however_they_are_computed(
    sources: train.Sources, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train.run(settings(), sources, tmp_path / "first")
    report = (tmp_path / "first" / "report.html").read_text()
    assert all(f"<h3>{title}</h3>" in report for title in ("Training loss", "Held-out loss", "Held-out loss by σ"))
    assert 'alt="samples at step 8" src="data:image/jpeg;base64,' in report
    with caplog.at_level(logging.INFO):
        second = train.run(settings(keep_last=5, checkpoint_minutes=1), sources, tmp_path / "second")
    assert first == second
    assert "nothing to train" in caplog.text
    assert train.run(settings(), sources, tmp_path / "again", force_rerun="x").digest == first.digest  # type: ignore[union-attr]


def test_a_named_checkpoint_of_another_training_is_refused(sources: train.Sources, tmp_path: Path) -> None:
    train.run(settings(), sources, tmp_path / "model")
    named = train.Resume(str(checkpoints(tmp_path)[0]))
    with pytest.raises(LatentflowError) as raised:
        train.run(settings(learning_rate=0.1, batch_size=4), sources, tmp_path / "other", resume=named)
    words = str(raised.value)
    assert "train.batch_size is 4, was 8" in words
    assert "train.learning_rate is 0.1, was 0.002" in words
    assert "train.steps" not in words.partition("Set these back")[0]
    with pytest.raises(LatentflowError, match=r"encoded is .*, was "):
        _with_other_data(sources, tmp_path, named)
    assert not (tmp_path / "other").exists()


def _with_other_data(sources: train.Sources, tmp_path: Path, named: train.Resume) -> None:
    shutil.copytree(sources.encoded, tmp_path / "encoded")
    EncodedManifest.read(tmp_path / "encoded").model_copy(update={"digest": "other"}).write(tmp_path / "encoded")
    train.run(settings(), train.Sources(tmp_path / "encoded", sources.autoencoder), tmp_path / "other", resume=named)


def test_a_training_is_extended_only_when_asked(sources: train.Sources, tmp_path: Path) -> None:
    train.run(settings(), sources, tmp_path / "model")
    named = str(checkpoints(tmp_path)[-1])
    with pytest.raises(LatentflowError, match=r"train\.steps is 12, was 8.*another train\.steps is allowed with"):
        train.run(settings(steps=12), sources, tmp_path / "longer", resume=train.Resume(named))
    with pytest.raises(LatentflowError, match=r"is of step 8, and train\.steps is 8: raise it"):
        train.run(settings(), sources, tmp_path / "longer", resume=train.Resume(named))
    longer = train.run(settings(steps=12), sources, tmp_path / "longer", resume=train.Resume(named, more_steps=True))
    assert longer
    assert "resumed_from" in longer.inputs
    assert json.loads((tmp_path / "longer" / "metrics.json").read_text())["steps"] == 12
    again = str(max(checkpoints(tmp_path), key=lambda path: path.name))
    assert again.endswith("step-000000012")
    longest = train.run(settings(steps=14), sources, tmp_path / "longest", resume=train.Resume(again, more_steps=True))
    assert longest
    assert longest.inputs["resumed_from"] != longer.inputs["resumed_from"]


def test_checkpoints_lie_where_the_environment_says(
    sources: train.Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("LATENTFLOW_CHECKPOINTS", "memory://kept")
    manifest = train.run(settings(), sources, tmp_path / "model")
    assert manifest
    found = fsspec.filesystem("memory").find(f"/kept/{manifest.fingerprint[:32]}")
    assert any(name.endswith("step-000000008/files.json") for name in found)
    assert not checkpoints(tmp_path)


def test_a_place_where_nothing_can_be_kept_is_told_before_training(
    sources: train.Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATENTFLOW_CHECKPOINTS", str(tmp_path / "file"))
    with pytest.raises(LatentflowError, match="No checkpoint can be kept in"):
        train.run(settings(), sources, tmp_path / "model")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_low_rank_fine_tuning_leaves_a_pipeline_and_an_adapter(
    kind: str, sources: train.Sources, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    train.run(settings(), sources, tmp_path / "base")
    base = tmp_path / "base" / "pipeline"
    chosen = settings(train__adapter__kind=kind, model__pretrained=str(base))
    manifest = train.run(chosen, sources, tmp_path / "tuned")
    assert manifest
    assert "pretrained" in manifest.inputs
    changed = differing(base, tmp_path / "tuned" / "pipeline")
    assert changed
    assert all(".to_" in name for name in changed)
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.load_lora_weights(tmp_path / "tuned" / "lora")
    run = client().get_run(manifest.mlflow_run_id)
    assert len(run.outputs.model_outputs) == 1


def test_only_the_named_parameters_are_trained(sources: train.Sources, tmp_path: Path) -> None:
    train.run(settings(), sources, tmp_path / "base")
    base = tmp_path / "base" / "pipeline"
    train.run(settings(trainable=["*attn2*"], model__pretrained=str(base)), sources, tmp_path / "tuned")
    changed = differing(base, tmp_path / "tuned" / "pipeline")
    assert changed
    assert all("attn2" in name for name in changed)


def test_an_average_of_another_length_is_made_afterwards(sources: train.Sources, tmp_path: Path) -> None:
    manifest = train.run(settings(ema_lengths=[0.05, 0.1], ema_snapshots=4), sources, tmp_path / "model")
    made = average.run(tmp_path / "model", 0.08, tmp_path / "made")
    assert manifest
    assert made.digest != manifest.digest
    assert ModelManifest.read(tmp_path / "made").lineage["averaged_length"] == "0.08"
    assert (tmp_path / "made" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.slow
def test_torchrun_trains_with_two_processes_and_one_writes(sources: train.Sources, tmp_path: Path) -> None:
    chosen = trainings.SMALL | {"train.batch_size": 8}
    words = [word for name, value in chosen.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "latentflow.cli", "train", "--params", str(trainings.PARAMS)),
        *("--encoded", str(sources.encoded), "--autoencoder", str(sources.autoencoder), "--out", str(tmp_path / "two")),
        *words,
    ]
    paths = os.pathsep.join((str(trainings.PARAMS.parent), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("diffusers pipeline in") == 1
    one = train.run(settings(), sources, tmp_path / "one", force_rerun="again")
    two = ModelManifest.read(tmp_path / "two")
    assert one
    losses = [json.loads((tmp_path / name / "metrics.json").read_text())["train_loss"] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert two.mlflow_run_id
