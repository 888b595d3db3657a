"""The whole step on a tiny real pipeline: files, digests, the work store, MLflow there and away."""

import io
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from encoded_sets import Recipe, write_set
from PIL import Image
from safetensors.torch import load_file
from tiny import RESOLUTION, build_pipeline

from latentflow.data.media_refs import BytesMedia
from latentflow.data.record_writer import record_writer
from latentflow.data.records import RecordSet
from latentflow.data.sources import Candidate
from latentflow.data.validation import Limits, check
from latentflow.errors import LatentflowError
from latentflow.evaluation import drawing
from latentflow.evaluation.comparison import compare, page
from latentflow.evaluation.drawing import Artist, Request, Settings
from latentflow.evaluation.judge import TIMINGS
from latentflow.evaluation.units import read_units
from latentflow.manifest import DuplicateCounts, EvaluationManifest, ModelManifest, RecordsManifest
from latentflow.params import EvaluateInputs, EvaluateParams
from latentflow.registry import pyfunc_model
from latentflow.steps import evaluate

WORDS = ["red", "green", "blue", "heart", "star", "face", "dog", "cat", "sun", "moon"]


@pytest.fixture(scope="module")
def inputs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, encoded/ and records/ of 30 pictures."""
    root = tmp_path_factory.mktemp("evaluate")
    build_pipeline(root / "model" / "pipeline")
    ModelManifest(
        digest="model-digest",
        fingerprint="f",
        inputs={"encoded": "encoded-digest"},
        pipeline_class="StableDiffusionPipeline",
        resolution=RESOLUTION,
        mlflow_run_id="",
        lineage={},
    ).write(root / "model")
    _write_records(root / "records")
    _write_encoded(root / "encoded", "records-digest")
    return root


def _write_records(folder: Path) -> None:
    folder.mkdir()
    with record_writer(folder) as writer:
        for number in range(30):
            data = io.BytesIO()
            Image.new("RGB", (20, 20), (number * 8, 255 - number * 8, 128)).save(data, "PNG")
            caption = f"{WORDS[number % 10]} {WORDS[number // 10]}"
            candidate = Candidate(f"{number:02d}", caption, BytesMedia(data.getvalue()))
            writer.add(check(candidate, Limits(1, 100)), "test" if number % 5 == 0 else "train")
    RecordsManifest(
        digest="records-digest",
        fingerprint="f",
        inputs={},
        source="made by hand",
        revision="1",
        license="CC0",
        credit="nobody",
        counts=writer.counts,
        quarantined=0,
        duplicates=DuplicateCounts(exact=0, near=0, dropped=0),
    ).write(folder)


def _write_encoded(folder: Path, records_digest: str) -> None:
    half = RESOLUTION // 2
    recipe = Recipe(
        {"test": [((4, half, half), 6)]},
        digest="encoded-digest",
        inputs={"records": records_digest},
        resolution=RESOLUTION,
        tokens=8,
    )
    write_set(folder, recipe)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def params(**changes: object) -> EvaluateInputs:
    values = {"guidance": 2.0, "sampler": "euler", "steps": 2, "captions": 5, "seeds": 2, "seed": 7, "batch_size": 4}
    values |= {"reconstructions": 4, "grid": {"prompts": 2, "guidance": [1.0], "steps": [1]}}
    values |= {"weights": {"inception": "", "dinov2": "", "clip": "", "lpips": ""}}
    return EvaluateInputs(evaluate=EvaluateParams(**values | {"gallery_prompts": ["a <red> moon"]} | changes))


def run(root: Path, out: str = "out", token: str = "", **changes: object) -> EvaluationManifest:
    return evaluate.run(params(**changes), root / "model", root / "encoded", root / "records", Path(out), token)


def test_the_folder_is_complete_and_its_digest_repeatable(inputs_folder: Path, no_mlflow: None):
    manifest = run(inputs_folder)
    assert manifest == EvaluationManifest.read(Path("out"))
    assert manifest.mlflow_run_id == ""
    assert manifest.metrics == json.loads(Path("out/metrics.json").read_text())
    protocol = json.loads(Path("out/protocol.json").read_text())
    assert (protocol["train_captions"], protocol["test_captions"], protocol["train_seeds"]) == (5, 5, 2)
    assert protocol["reference_digest"] == "records-digest"
    assert Path("out/plots/heldout_loss_by_sigma.csv").read_text().startswith("sigma,loss,low,high\n0.05,")
    assert len(Path("out/ranks.csv").read_text().splitlines()) == 1 + (5 + 5) * 2
    assert Image.open("out/gallery.png").size[0] > 1000
    page = Path("out/report.html").read_text()
    assert "a &lt;red&gt; moon" in page
    assert "CC0. nobody" in page
    assert len(page.encode()) < 2_000_000
    again = run(inputs_folder, "again", token="once more")
    assert again.fingerprint != manifest.fingerprint
    assert again.digest == manifest.digest


def test_a_metric_is_the_mean_of_its_units(inputs_folder: Path, no_mlflow: None):
    metrics, units = run(inputs_folder).metrics, read_units(Path("out"))
    assert {"retrieval/train/top5", "retrieval/test/top1", "heldout_loss"} <= set(units)
    for name, values in units.items():
        jackknifed = name.startswith("kernel_")
        wanted = pytest.approx(metrics[name], rel=1e-6, abs=1e-3 if jackknifed else 1e-12)
        assert sum(values.values()) / len(values) == wanted, name
    assert {"vae/psnr", "diversity/test", "memorised/test", "kernel_pixels8", "precision_pixels8"} <= set(units)
    assert len(units["heldout_loss"]) == 6
    assert len(units["retrieval/train/top5"]) == 5


def test_the_gallerys_pictures_are_kept_with_prompt_and_seed(inputs_folder: Path, no_mlflow: None):
    run(inputs_folder)
    asked = json.loads(Path("out/gallery.json").read_text())
    pictures = load_file("out/gallery.safetensors")["pictures"]
    assert asked[0] == {"prompt": "a <red> moon", "seed": 7}
    assert pictures.shape == (len(asked), 3, RESOLUTION, RESOLUTION)
    pipeline = inputs_folder / "model" / "pipeline"
    artist = Artist(pipeline, Settings.read(pipeline, "euler", 2, 2.0))
    drawn = artist.draw([Request(one["prompt"], one["seed"]) for one in asked[:3]], 4).pictures
    assert torch.equal(drawn, pictures[:3])


def test_a_plain_pipeline_folder_is_judged_with_what_it_ships(inputs_folder: Path, no_mlflow: None, tmp_path: Path):
    shutil.copytree(inputs_folder / "model" / "pipeline", tmp_path / "champion")
    path = tmp_path / "champion" / "generation.json"
    shipped = {"sampler": "dpm_solver_2m", "steps": 3, "guidance": 1.5}
    path.write_text(json.dumps(json.loads(path.read_text()) | shipped))
    arguments = (inputs_folder / "encoded", inputs_folder / "records", Path("judged"))
    manifest = evaluate.judge_folder(params().evaluate, tmp_path / "champion", *arguments)
    protocol = json.loads(Path("judged/protocol.json").read_text())
    assert {name: protocol[name] for name in shipped} == shipped
    assert manifest.mlflow_run_id == ""
    # The encoded set of this test was made by no VAE, and nothing but the model's manifest says that they fit.
    assert "heldout_loss" not in manifest.metrics
    assert (
        "it cannot be told whether the model learnt from latents such as these"
        in Path("judged/report.html").read_text()
    )
    same = run(inputs_folder, **shipped)
    assert {name: same.metrics[name] for name in manifest.metrics if not name.startswith(TIMINGS)} == {
        name: value for name, value in manifest.metrics.items() if not name.startswith(TIMINGS)
    }
    units = read_units(Path("out"))
    assert units.pop("heldout_loss")
    assert units == read_units(Path("judged"))
    own = run(inputs_folder, "own")
    assert own.digest != manifest.digest
    comparable = json.loads(Path("own/protocol.json").read_text())
    assert comparable["comparison"] == protocol["comparison"]


def test_the_page_of_two_evaluations(inputs_folder: Path, no_mlflow: None):
    run(inputs_folder)
    run(inputs_folder, "stronger", guidance=4.0)
    found = compare(Path("stronger"), Path("out"))
    rows = {row.metric: row for row in found.rows}
    assert rows["heldout_loss"].difference == 0
    assert rows["heldout_loss"].verdict == "equal"
    assert rows["vae/psnr"].pairs.units == 4
    assert rows["seconds_per_picture"].pairs is None
    text = page(Path("stronger"), Path("out"))
    assert len(text.encode()) < 2_000_000
    assert "guidance 4" in text
    assert "guidance 2" in text
    assert text.count("<figure>") == len(json.loads(Path("out/gallery.json").read_text()))
    run(inputs_folder, "fewer", captions=4)
    with pytest.raises(LatentflowError, match=r"they differ in .*train_captions"):
        compare(Path("fewer"), Path("out"))


def test_a_folder_that_nothing_packaged_is_refused(inputs_folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LatentflowError, match=r"holds no generation\.json"):
        evaluate.judge_folder(
            params().evaluate, tmp_path / "empty", inputs_folder / "encoded", inputs_folder / "records", Path("judged")
        )


def test_the_same_evaluation_is_not_drawn_twice_and_another_is(
    inputs_folder: Path, no_mlflow: None, monkeypatch: pytest.MonkeyPatch
):
    first = run(inputs_folder)
    drawn = []
    draw = Artist.draw
    monkeypatch.setattr(Artist, "draw", lambda self, *args: drawn.append(1) or draw(self, *args))
    assert run(inputs_folder, "elsewhere") == first
    assert Path("elsewhere/report.html").read_bytes() == Path("out/report.html").read_bytes()
    assert not drawn
    assert run(inputs_folder, guidance=1.0).digest != first.digest
    assert drawn


def test_one_child_run_per_evaluation_with_metrics_and_files(inputs_folder: Path):
    from latentflow.registry.store import connect

    first = run(inputs_folder)
    assert run(inputs_folder, "elsewhere").mlflow_run_id == first.mlflow_run_id != ""
    other = run(inputs_folder, steps=3)
    assert other.mlflow_run_id != first.mlflow_run_id
    client = connect()
    logged = client.get_run(first.mlflow_run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics == pytest.approx(first.metrics)
    assert len(client.get_metric_history(first.mlflow_run_id, "heldout_loss")) == 1
    assert logged.data.params["evaluate.guidance"] == "2.0"
    assert logged.data.tags["mlflow.parentRunId"] == client.get_run(other.mlflow_run_id).data.tags["mlflow.parentRunId"]
    names = {artifact.path for artifact in client.list_artifacts(first.mlflow_run_id)}
    assert {"gallery.png", "report.html", "protocol.json", "ranks.csv"} <= names


def test_a_picture_depends_on_prompt_and_seed_alone(inputs_folder: Path):
    pipeline = inputs_folder / "model" / "pipeline"
    artist = Artist(pipeline, Settings.read(pipeline, "euler", 2, 2.0))
    requests = [
        Request("red heart", 0),
        Request("blue star", 1),
        Request("red heart", 2),
        Request("cat", 0),
        Request("sun", 5),
    ]
    drawn = artist.draw(requests, 4)
    assert drawn.pictures.shape == (5, 3, RESOLUTION, RESOLUTION)
    assert drawn.pictures.dtype == torch.uint8
    assert drawn.seconds > 0
    turned = artist.draw(requests[::-1], 4).pictures.flip(0)
    assert torch.equal(drawn.pictures, turned)
    assert not torch.equal(drawn.pictures[0], drawn.pictures[2])


def test_the_pictures_are_those_that_plain_diffusers_draws(inputs_folder: Path):
    from diffusers import DiffusionPipeline

    pipeline = inputs_folder / "model" / "pipeline"
    mine = Artist(pipeline, Settings.read(pipeline, "euler", 2, 2.0)).draw([Request("red heart", 3)], 1).pictures[0]
    plain = DiffusionPipeline.from_pretrained(pipeline, local_files_only=True)
    generator = torch.Generator("cpu").manual_seed(3)
    image = plain(
        "red heart", num_inference_steps=2, guidance_scale=2.0, height=16, width=16, generator=generator
    ).images[0]
    assert Image.fromarray(mine.permute(1, 2, 0).numpy()).tobytes() == image.tobytes()


def test_too_many_captions_are_cut_with_a_warning(
    inputs_folder: Path, no_mlflow: None, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        run(inputs_folder, captions=500, seeds=1, steps=1, gallery_prompts=[])
    assert "evaluate.captions is 500, but there are only 24 training records" in caplog.text


def test_folders_that_do_not_belong_together_are_refused_before_drawing(
    inputs_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(drawing.Artist, "__init__", lambda *_: pytest.fail("a pipeline was loaded"))
    _write_encoded(tmp_path / "foreign", "other-records")
    arguments = (inputs_folder / "records", tmp_path / "out")
    with pytest.raises(LatentflowError, match="run `latentflow encode` again"):
        evaluate.run(params(), inputs_folder / "model", tmp_path / "foreign", *arguments)
    with pytest.raises(LatentflowError, match="run `latentflow train` first"):
        evaluate.run(params(), tmp_path / "nothing", inputs_folder / "encoded", *arguments)
    with pytest.raises(LatentflowError, match="at least 2 distinct training captions"):
        run(inputs_folder, captions=1)
    assert not (tmp_path / "out").exists()


def test_fewer_steps_than_the_pipeline_can_draw_in(inputs_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pyfunc_model, "fewest_steps", lambda _: 2)
    monkeypatch.setattr(drawing.Artist, "__init__", lambda *_: pytest.fail("a pipeline was loaded"))
    with pytest.raises(
        LatentflowError, match=r"at least 2 steps, and evaluate\.steps is 2 with evaluate\.grid\.steps \[1\]"
    ):
        run(inputs_folder)


def test_a_model_that_diverged_is_named_and_nothing_is_kept(inputs_folder: Path, monkeypatch: pytest.MonkeyPatch):
    from latentflow.denoisers import Denoiser

    monkeypatch.setattr(Denoiser, "predict", lambda self, xt, *_: xt * float("nan"))
    with pytest.raises(LatentflowError, match="training diverged"):
        run(inputs_folder)
    assert not Path("out").exists()


def test_the_real_pictures_are_those_of_the_records(inputs_folder: Path):
    from latentflow.evaluation.retrieval import picture_chunks

    records = RecordSet.open(inputs_folder / "records")
    chunks = list(picture_chunks(records, RESOLUTION, size=7))
    assert [len(chunk) for chunk in chunks] == [7, 7, 7, 7, 2]
    assert torch.cat(chunks)[3, :, 0, 0].tolist() == [24, 231, 128]
