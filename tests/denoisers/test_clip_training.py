"""Pictures beside clips in the training of a pipeline that draws clips."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import CHECKPOINTS
from encoding import PARAMS, make_records, write_pictures
from ingest_helpers import clip
from PIL import Image
from tuning import opened, settings

from latentflow.manifest import EncodedManifest
from latentflow.params import for_step, load
from latentflow.steps import autoencoder, encode, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("clips", [0, 8])
def test_a_picture_is_a_clip_of_one_frame(
    clips: int, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    tiny = CHECKPOINTS["wan"]
    folder = tiny.write(tmp_path / "wan")
    media = write_pictures(tmp_path / "media", 40)
    with (media / "metadata.jsonl").open("a") as file:
        for number in range(clips):
            (media / f"{number}.mp4").write_bytes(clip(tiny.frames + number))
            file.write(json.dumps({"file_name": f"{number}.mp4", "text": "a red dog"}) + "\n")
    records = make_records(media, tmp_path / "records")
    few = {"train.adapter.kind": "none", "train.steps": 4, "train.batch_size": 2, "encode.clip_frames": clips and 5}
    values = settings(folder, tiny) | few | {"train.validate_every": 4, "train.sample_every": 4, "train.log_every": 4}
    params = load(PARAMS, [f"{name}={json.dumps(value)}" for name, value in values.items()])
    autoencoder.run(for_step(params, "autoencoder"), records, tmp_path / "autoencoder")
    encode.run(for_step(params, "encode"), records, tmp_path / "autoencoder", tmp_path / "encoded")
    shapes = {shard.shape for shard in EncodedManifest.read(tmp_path / "encoded").shards if shard.kind == "latents"}
    assert shapes == ({(4, 8, 8), (4, 3, 8, 8)} if clips else {(4, 8, 8)})
    train.run(
        for_step(params, "train"), train.Sources(tmp_path / "encoded", tmp_path / "autoencoder"), tmp_path / "model"
    )
    saved = json.loads((tmp_path / "model" / "pipeline" / "generation.json").read_text())
    assert saved["call"]["num_frames"] == 1
    drawn = opened(tmp_path / "model" / "pipeline")(
        "a red dog", height=tiny.side, width=tiny.side, num_inference_steps=2, output_type="np", **saved["call"]
    )
    assert drawn.frames.shape == (1, 1, tiny.side, tiny.side, 3)
    (sheet,) = (tmp_path / "model" / "samples").glob("*.png")
    assert np.asarray(Image.open(sheet)).std() > 0
