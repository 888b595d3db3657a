"""The fine-tuning pipeline, tiny: what a run leaves in its storage becomes a LoRA, and nothing is encoded again."""

from pathlib import Path

import pytest

from latentflow.manifest import ModelManifest
from latentflow.steps.encode import shared_place
from pipelines import local
from pipelines.configuration import read_overrides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
UNET = {"model.denoiser": "unet", "model.unet.channels": [32], "model.unet.attention": [True]}


def test_a_lora_of_what_a_run_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tiny = read_overrides(local.TINY) | UNET
    storage = str(tmp_path / "volume")
    results = {one.step: one for one in local.run(tiny, tmp_path / "run", encode_parts=2, storage=storage)}
    encoded = results["encode"]
    assert not list(encoded.folder.glob("latents")), "the shards are in the storage"
    assert list((tmp_path / "volume" / "checkpoints").glob("*/step-*"))

    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "another"))
    inputs = {
        "encoded_url": shared_place(storage, encoded.manifest.fingerprint),
        "encoded_digest": encoded.manifest.digest,
        "model_denoiser": "unet",
        "model_pretrained": str(results["train"].folder / "pipeline"),
        "train_steps": 3,
    }
    changed = {name: value for name, value in tiny.items() if name.startswith("train.") and name != "train.steps"}
    model = (
        local.start("fine_tune", {**changed, "train.adapter.rank": 2}, inputs, tmp_path / "tuned") / "train" / "model"
    )
    manifest = ModelManifest.read(model)
    assert manifest.inputs["encoded"] == encoded.manifest.digest
    assert manifest.lineage["params.train.adapter.kind"] == "lora"
    assert (model / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert (model / "pipeline" / "model_index.json").is_file()
    assert not (tmp_path / "another" / "encode").exists(), "nothing is encoded again"
