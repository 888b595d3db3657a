"""Adapters in MLflow: they load back and draw, are logged once, and their failure costs a warning only."""

import io
import logging
import shutil
from pathlib import Path

import mlflow.diffusers
import mlflow.pyfunc
import pytest
import torch
from diffusers import DiffusionPipeline
from hubs import REPOSITORY, SHA, holding
from native import shake, train_params
from PIL import Image
from tiny import CALL, RESOLUTION

from latentflow.denoisers import FAMILIES, load
from latentflow.registry import adapters, store, tracking
from latentflow.training import trainable


@pytest.fixture(scope="session")
def adapter(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny pipeline, as a training leaves it."""
    folder, model = tmp_path_factory.mktemp("adapter"), load(tiny_pipeline).model
    trainable.choose(model, train_params(adapter={"kind": "lora", "rank": 2, "alpha": 3}), FAMILIES["unet"])
    shake(model, seed=1)
    assert trainable.save_adapter(model, folder, FAMILIES["unet"])
    return folder


def logged(run: tracking.Run) -> list[str]:
    outputs = store.connect().get_run(run.id).outputs
    return [output.model_id for output in outputs.model_outputs] if outputs else []


def test_a_logged_adapter_loads_back_and_draws(project: Path, tiny_pipeline: Path, adapter: Path) -> None:
    with tracking.training_run({"train.steps": "30"}, {}) as run:
        run.log_adapter(adapter, str(tiny_pipeline), RESOLUTION, 2.0)
    client = store.connect()
    (model_id,) = logged(run)
    kept = client.get_logged_model(model_id)
    assert kept.source_run_id == run.id
    assert kept.params["train.steps"] == "30"
    assert kept.tags[adapters.BASE] == str(tiny_pipeline)

    def latents(pipeline: DiffusionPipeline) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        return pipeline("red heart", generator=torch.Generator().manual_seed(0), output_type="latent", **CALL).images

    loaded = mlflow.diffusers.load_model(kept.artifact_location)
    assert loaded.base_model == str(tiny_pipeline)
    theirs = DiffusionPipeline.from_pretrained(tiny_pipeline)
    plain = latents(theirs)
    theirs.load_lora_weights(adapter)
    assert torch.equal(latents(loaded.load_pipeline(device="cpu")), latents(theirs))
    assert not torch.allclose(latents(theirs), plain, atol=1e-3)

    served = mlflow.pyfunc.load_model(kept.artifact_location)
    defaults = {spec.name: spec.default for spec in served.metadata.get_params_schema().params}
    assert (defaults["height"], defaults["width"], defaults["guidance_scale"]) == (RESOLUTION, RESOLUTION, 2.0)
    (picture,) = served.predict({"prompt": ["red heart"]}, params={"num_inference_steps": 2})
    assert Image.open(io.BytesIO(picture)).size == (RESOLUTION, RESOLUTION)


def test_a_resumed_run_holds_the_adapter_once(project: Path, tiny_pipeline: Path, adapter: Path) -> None:
    with tracking.training_run({}, {}) as run:
        run.log_adapter(adapter, str(tiny_pipeline), RESOLUTION, 2.0)
    with tracking.training_run({}, {}, run_id=run.id) as resumed:
        resumed.log_adapter(adapter, str(tiny_pipeline), RESOLUTION, 2.0)
    assert resumed.id == run.id
    assert len(logged(run)) == 1


def test_a_base_in_the_registry_is_kept_by_its_address(
    project: Path, registered_project: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(registered_project, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    with tracking.training_run({}, {}) as run:
        run.log_adapter(adapter, "models:/tiny@champion", RESOLUTION, 2.0)
    kept = store.connect().get_logged_model(logged(run)[0])
    assert kept.tags[adapters.BASE] == "models:/tiny@champion"
    assert (Path(mlflow.diffusers.load_model(kept.artifact_location).base_model) / "model_index.json").is_file()


def test_an_adapter_that_cannot_be_logged_costs_a_warning(
    project: Path, tiny_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    with caplog.at_level(logging.WARNING, "latentflow"), tracking.training_run({}, {}) as run:
        run.log_adapter(tmp_path / "empty", str(tiny_pipeline), RESOLUTION, 2.0)
    assert f"MLflow refuses something of run {run.id}" in caplog.text
    assert store.connect().get_run(run.id).info.status == "FINISHED"


def test_an_adapter_of_a_pipeline_on_the_hub_is_logged(
    project: Path, tiny_pipeline: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = f"{REPOSITORY}@{SHA}"
    with holding(monkeypatch, tmp_path / "cache", tiny_pipeline), tracking.training_run({}, {}) as run:
        run.log_adapter(adapter, base, RESOLUTION, 2.0)
    (model_id,) = logged(run)
    kept = store.connect().get_logged_model(model_id)
    assert kept.tags[adapters.BASE] == base
    loaded = mlflow.diffusers.load_model(kept.artifact_location)
    assert Path(loaded.base_model).name == SHA
    assert (Path(loaded.base_model) / "model_index.json").is_file()
