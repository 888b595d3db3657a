"""Pulling: by alias, by version, from a folder; the same picture three ways; and errors that say what there is."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from registry_helpers import NAME
from tiny import CALL
from trainings import MODEL

from latentflow import denoisers
from latentflow.errors import LatentflowError, RegistryError
from latentflow.params import ModelParams
from latentflow.registry import pulling

PROMPT = "red heart"

# Runs in a process that cannot import latentflow: what somebody does who has only the registry.
WITHOUT_LATENTFLOW = """
import sys
sys.modules["latentflow"] = None
import base64, json, mlflow, torch
from pathlib import Path
torch.set_num_threads(1)
uri, name, out, prompt, call = sys.argv[1:]
call = json.loads(call)
mlflow.set_tracking_uri(uri)

model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
answer = model.predict({"prompt": [prompt, "blue cat"]}, params={"seed": 7})
for number, picture in enumerate(answer["image"]):
    Path(out, f"mlflow-{number}.png").write_bytes(base64.b64decode(picture))
other = model.predict({"prompt": [prompt]}, params={"seed": 7, "guidance": 5.0, "steps": 2})
Path(out, "mlflow-other.png").write_bytes(base64.b64decode(other["image"][0]))
try:
    model.unwrap_python_model().predict(None, {"prompt": ["a"]}, {"sead": 7})
except ValueError as error:
    Path(out, "refusal.txt").write_text(str(error))
rows = model.predict([{"prompt": "blue cat"}], params={"seed": 7})
assert rows["image"][0] == answer["image"][1]

from diffusers import DiffusionPipeline
folder = mlflow.artifacts.download_artifacts(f"models:/{name}@champion/artifacts/pipeline")
pipe = DiffusionPipeline.from_pretrained(folder)
picture = pipe(prompt, **call, generator=torch.Generator("cpu").manual_seed(7)).images[0]
picture.save(Path(out, "diffusers.png"))
"""


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_three_ways_give_the_same_picture(registered: Path, drawn_in_one_thread: None, tmp_path: Path) -> None:
    uri = f"sqlite:///{registered / 'mlruns' / 'mlflow.db'}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", WITHOUT_LATENTFLOW, uri, NAME, str(tmp_path), PROMPT, json.dumps(CALL)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = pulling.pull(f"models:/{NAME}@champion", tmp_path / "pulled")
    with_us = pulling.draw(folder, [PROMPT, "blue cat"], seed=7)
    assert png(with_us[0]) == (tmp_path / "mlflow-0.png").read_bytes() == (tmp_path / "diffusers.png").read_bytes()
    assert png(with_us[1]) == (tmp_path / "mlflow-1.png").read_bytes()
    other = pulling.draw(folder, [PROMPT], seed=7, guidance=5.0, steps=2)[0]
    assert png(other) == (tmp_path / "mlflow-other.png").read_bytes() != png(with_us[0])
    assert "sead" in (tmp_path / "refusal.txt").read_text()


def test_a_picture_depends_on_its_prompt_and_seed_alone(tiny_pipeline: Path) -> None:
    given = {"steps": 3, "guidance": 2.0}
    both = pulling.draw(tiny_pipeline, [PROMPT, "blue cat"], seed=3, **given)
    alone = pulling.draw(tiny_pipeline, ["blue cat"], seed=3, **given)
    assert np.array_equal(np.asarray(both[1]), np.asarray(alone[0]))
    assert not np.array_equal(
        np.asarray(both[1]), np.asarray(pulling.draw(tiny_pipeline, ["blue cat"], seed=4, **given)[0])
    )


def test_pulled_models_are_kept_and_folders_are_taken_as_they_are(
    registered: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "work"))
    kept = pulling.pull(f"models:/{NAME}@champion")
    assert kept.is_relative_to(tmp_path / "work")
    stamp = (kept / "model_index.json").stat().st_mtime_ns
    assert pulling.pull(f"models:/{NAME}/1") == kept
    assert (kept / "model_index.json").stat().st_mtime_ns == stamp
    assert pulling.pull(str(model)) == model / "pipeline" == pulling.pull(str(model / "pipeline"))


def test_training_asks_the_registry_once_what_an_alias_is_on(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "work"))
    asked: list[object] = []
    find = pulling.find_version
    monkeypatch.setattr(pulling, "find_version", lambda *given: asked.append(given) or find(*given))
    model = ModelParams.model_validate(MODEL | {"denoiser": "unet", "pretrained": f"models:/{NAME}@champion"})
    params, parent = denoisers.begin(model)
    assert parent == f"models:/{NAME}/1"
    assert "pretrained" in denoisers.start_digest(params)
    denoisers.check(params, [(4, 8, 8)], 16)
    denoisers.warn_of_other_definition(params, "flow")
    assert denoisers.start(params, [4, 8, 8], 16, seed=0).training
    assert len(asked) == 1
    assert denoisers.begin(model.model_copy(update={"pretrained": ""})).parent == ""
    with pytest.raises(LatentflowError, match=r"model\.pretrained: There is no folder nowhere"):
        denoisers.begin(model.model_copy(update={"pretrained": "nowhere"}))


def test_a_folder_of_somebody_else_is_not_replaced(registered: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    with pytest.raises(LatentflowError, match="not a pulled model"):
        pulling.pull(f"models:/{NAME}@champion", precious)
    assert (precious / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/tini@champion", "no model 'tini'.*it has: tiny"),
        (f"models:/{NAME}@chamipon", r"no alias 'chamipon'; its aliases: @champion \(version 1\); its versions: 1"),
        (f"models:/{NAME}/7", "no version 7; its aliases.*its versions: 1"),
        (f"models:/{NAME}", "neither a model folder nor"),
        ("nowhere", "no folder nowhere"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(registered: Path, uri: str, message: str) -> None:
    with pytest.raises(LatentflowError, match=message):
        pulling.pull(uri)


def test_reading_makes_no_store_and_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match=r"no MLflow store at .*mlruns/mlflow\.db"):
        pulling.pull(f"models:/{NAME}@champion")
    assert not (tmp_path / "mlruns").exists()


def test_an_unreachable_registry(closed_port: int) -> None:
    with pytest.raises(RegistryError, match=f"http://127.0.0.1:{closed_port} does not answer"):
        pulling.pull(f"models:/{NAME}@champion")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "no default for steps, guidance"),
        ({"steps": 0, "guidance": 1.0}, "steps is 0"),
        ({"steps": 2, "guidance": -1.0}, "guidance"),
    ],
)
def test_settings_that_cannot_be_drawn(tiny_pipeline: Path, asked: dict[str, float], message: str) -> None:
    with pytest.raises(LatentflowError, match=message):
        pulling.draw(tiny_pipeline, [PROMPT], **asked)
