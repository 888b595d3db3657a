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
from latentflow.generation.drawing import draw
from latentflow.generation.orders import Dials
from latentflow.params import ModelParams
from latentflow.registry import pulling, pyfunc_model

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
except mlflow.exceptions.MlflowException as error:
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
    with_us = draw(folder, [PROMPT, "blue cat"], seed=7)
    assert png(with_us[0]) == (tmp_path / "mlflow-0.png").read_bytes() == (tmp_path / "diffusers.png").read_bytes()
    assert png(with_us[1]) == (tmp_path / "mlflow-1.png").read_bytes()
    other = draw(folder, [PROMPT], 7, Dials(guidance=5.0, steps=2))[0]
    assert png(other) == (tmp_path / "mlflow-other.png").read_bytes() != png(with_us[0])
    assert "sead" in (tmp_path / "refusal.txt").read_text()


def test_a_picture_depends_on_its_prompt_and_seed_alone(tiny_pipeline: Path) -> None:
    given = Dials(steps=3, guidance=2.0)
    both = draw(tiny_pipeline, [PROMPT, "blue cat"], 3, given)
    alone = draw(tiny_pipeline, ["blue cat"], 3, given)
    assert np.array_equal(np.asarray(both[1]), np.asarray(alone[0]))
    assert not np.array_equal(np.asarray(both[1]), np.asarray(draw(tiny_pipeline, ["blue cat"], 4, given)[0]))


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
    denoisers.check(params, [(4, 8, 8)], denoisers.Captions(16))
    denoisers.warn_of_other_definition(params, "flow")
    assert denoisers.start(params, [4, 8, 8], denoisers.Captions(16), seed=0).training
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
        ({"steps": 2, "guidance": 2.0, "width": 4096}, "width is 4096: it must be at least 1 and at most 64"),
        ({"steps": 2, "guidance": 2.0, "width": 20}, "divisible by 8"),
        ({"steps": 2, "guidance": 2.0, "sampler": "eular"}, "sampler is 'eular': it must be one of euler, heun"),
    ],
)
def test_settings_that_cannot_be_drawn(tiny_pipeline: Path, asked: dict[str, object], message: str) -> None:
    with pytest.raises(LatentflowError, match=message):
        draw(tiny_pipeline, [PROMPT], dials=Dials.model_validate(asked))


def test_one_step_where_the_pipeline_believes_in_a_distilled_model(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, fewest in {"PixArtAlphaPipeline": 2, "FluxPipeline": 1}.items():
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        assert pyfunc_model.fewest_steps(tmp_path) == fewest
    monkeypatch.setattr(pyfunc_model, "fewest_steps", lambda _: 2)
    with pytest.raises(LatentflowError, match="steps is 1: this model's pipeline draws in at least 2"):
        draw(tiny_pipeline, [PROMPT], dials=Dials(steps=1, guidance=1.0))


def test_what_is_there_whole_is_not_fetched_again_and_what_is_damaged_is(registered: Path, tmp_path: Path) -> None:
    out = tmp_path / "pulled"
    first = pulling.pull_pinned(f"models:/{NAME}@champion", out)
    assert (first.address, first.fetched > 5) == (f"models:/{NAME}/1", True)
    assert pulling.pull_pinned(f"models:/{NAME}/1", out).fetched == 0
    (out / "generation.json").write_text("{}")
    assert pulling.pull_pinned(f"models:/{NAME}@champion", out).fetched == first.fetched
    assert json.loads((out / "generation.json").read_text())["guidance"] == 2.0


def test_a_download_that_broke_off_goes_on(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentflow.registry import fetching

    real, done = fetching._download, []

    def breaks(repository: object, file: fetching._File, waiting: Path) -> None:
        if len(done) == 4:
            raise OSError("connection reset")
        done.append(file.path)
        real(repository, file, waiting)  # type: ignore[arg-type]

    out = tmp_path / "pulled"
    with monkeypatch.context() as broken:
        broken.setattr(fetching, "_download", breaks)
        with pytest.raises(RegistryError, match="connection reset"):
            pulling.pull(f"models:/{NAME}@champion", out)
    assert not out.exists()
    whole = pulling.pull_pinned(f"models:/{NAME}@champion", tmp_path / "whole")
    rest = pulling.pull_pinned(f"models:/{NAME}@champion", out)
    assert rest.fetched == whole.fetched - 4
    for file in (path for path in whole.folder.rglob("*") if path.is_file()):
        assert (out / file.relative_to(whole.folder)).read_bytes() == file.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
