"""Reconstruction, dials, memory, kinship and the page of two evaluations, on tiny real models and folders."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import RESOLUTION, build_pipeline, make_record

from latentflow.data.condition import Condition
from latentflow.data.records import Record
from latentflow.encoders import text as text_room
from latentflow.encoders import vae as vae_room
from latentflow.errors import LatentflowError
from latentflow.evaluation.comparison import Evaluation, compare, page
from latentflow.evaluation.dials import cost_metrics, draw_grid, grid_steps, measure_costs
from latentflow.evaluation.drawing import Artist, Request, Settings
from latentflow.evaluation.kinship import foreign
from latentflow.evaluation.reconstruction import reconstruct, similarity
from latentflow.evaluation.units import write_units
from latentflow.params import EvaluateParams
from latentflow.pictures import from_bytes


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return build_pipeline(tmp_path_factory.mktemp("parts") / "pipeline")


class Pictures:
    """Records whose pictures are noise seeded by their id, as RecordSet gives them."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def split(self, name: str) -> list[Record]:
        return [record for record in self.records if record.split == name]

    def image(self, record: Record, height: int, width: int) -> Image.Image:
        generator = np.random.default_rng(int(record.id))
        return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def pixels(self, records: list[Record], side: int) -> torch.Tensor:
        arrays = [np.asarray(self.image(record, side, side)) for record in records]
        return from_bytes(torch.from_numpy(np.stack(arrays)))


RECORDS = [make_record(str(number), f"{word} heart", "test") for number, word in enumerate(("red", "green", "blue"))]


def params(**grid: object) -> EvaluateParams:
    return EvaluateParams(
        guidance=2.0,
        sampler="euler",
        steps=2,
        captions=4,
        seeds=1,
        seed=0,
        batch_size=2,
        reconstructions=4,
        weights={"inception": "", "dinov2": "", "clip": "", "lpips": ""},
        grid={"prompts": 2, "guidance": [1.0, 2.0], "steps": [1, 3]} | grid,
        gallery_prompts=[],
    )


def test_similarity_is_psnr_and_ssim_by_picture():
    first = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    second = first.clone()
    second[1] += 10
    found = similarity(first, second)
    assert found["psnr"][1] == pytest.approx(20 * math.log10(255 / 10))
    assert found["psnr"][0] == 125.0
    assert found["ssim"][0] == pytest.approx(1)
    assert found["ssim"][1] < 1
    assert "ssim" not in similarity(first[..., :8, :8], second[..., :8, :8])


def test_pictures_go_through_the_shipped_vae_whatever_the_batch(pipeline: Path):
    vae, pictures = vae_room.load(str(pipeline / "vae")), Pictures(RECORDS)
    found = reconstruct(vae, pictures, RECORDS, RESOLUTION, 2, lambda a, b: (a - b).abs().mean((1, 2, 3)))
    assert found.pictures.shape == (3, 3, RESOLUTION, RESOLUTION)
    assert set(found.metrics) == {"vae/psnr", "vae/ssim", "vae/lpips"}
    assert set(found.units["vae/psnr"]) == {"0", "1", "2"}
    pixels = pictures.pixels(RECORDS[2:], RESOLUTION)
    back = vae_room.decode(vae, vae_room.encode(vae, pixels))
    error = (((back - pixels) / 2) ** 2).mean().item()
    assert found.values["psnr"][2] == pytest.approx(-10 * math.log10(error), abs=0.05)


def test_the_grid_has_the_evaluations_own_dials_and_its_pictures(pipeline: Path):
    artist = Artist(pipeline, Settings.read(pipeline, "euler", 2, 2.0))
    requests = [Request("red heart", 0), Request("cat", 0)]
    dials = draw_grid(artist, requests, params())
    assert dials is not None
    assert (dials.guidances, dials.steps) == ([1.0, 2.0], [1, 2, 3])
    assert dials.pictures.shape == (2, 3, 2, 3, RESOLUTION, RESOLUTION)
    assert torch.equal(dials.pictures[1, 1], artist.draw(requests, 2).pictures)
    assert draw_grid(artist, [], params()) is None


def test_a_picture_costs_time_and_at_least_its_weights(pipeline: Path):
    artist = Artist(pipeline, Settings.read(pipeline, "euler", 2, 2.0))
    costs = measure_costs(artist, Request("cat", 0), grid_steps(params()))
    assert [cost.steps for cost in costs] == [1, 2, 3]
    assert artist.weights == sum(p.nbytes for p in _tensors(artist))
    assert all(cost.seconds > 0 and cost.megabytes >= artist.weights / 2**20 for cost in costs)
    assert {"seconds_one_picture/steps_1", "memory_one_picture_mb/steps_3"} <= set(cost_metrics(costs))


def _tensors(artist: Artist) -> list[torch.Tensor]:
    parts = [part for part in artist._pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return [tensor for part in parts for tensor in part.state_dict().values()]


WATCHED = """
import numpy as np
from latentflow.evaluation.memory import Watch
with Watch("cpu") as watch:
    taken = np.ones(8_000_000)
    del taken
with Watch("cpu") as idle:
    pass
print(watch.grown, idle.grown)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="there is no /proc here")
def test_memory_that_was_taken_and_given_back_is_seen():
    # A process of its own: one that has freed memory before takes that first.
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=True)
    watched, idle = map(int, done.stdout.split())
    assert watched > 50_000_000
    assert idle < 30_000_000


class Split:
    """Held-out samples that a pipeline's own encoders made, or others."""

    def __init__(self, latents: torch.Tensor, text: torch.Tensor) -> None:
        self.buckets = [type("Bucket", (), {"count": len(latents), "shape": tuple(latents.shape[1:])})()]
        self._latents, self._text = latents, text

    def ids(self, bucket: int, rows: torch.Tensor) -> list[str]:
        return [str(row) for row in rows.tolist()]

    def samples(self, bucket: int, rows: torch.Tensor) -> object:
        told = Condition(self._text[rows], torch.ones(self._text.shape[:2], dtype=torch.bool)[rows])
        return SimpleNamespace(latents=self._latents[rows], condition=told)


def test_a_model_knows_the_set_that_its_encoders_made(pipeline: Path):
    pictures = Pictures(RECORDS)
    vae = vae_room.load(str(pipeline / "vae"))
    latents = vae_room.encode(vae, pictures.pixels(RECORDS, RESOLUTION))
    text = text_room.load_saved(pipeline, 8).encode([record.caption for record in RECORDS]).text
    encoded = SimpleNamespace(max_tokens=8, text_pipeline="")
    assert foreign(pipeline, Split(latents.bfloat16(), text.bfloat16()), encoded, pictures) == ""
    assert foreign(pipeline, Split(-latents, text), encoded, pictures).startswith("its VAE is not the one")
    assert foreign(pipeline, Split(latents, text.flip(1)), encoded, pictures).startswith("its text encoder is not")
    assert foreign(pipeline, Split(latents[:, :, None], text), encoded, pictures) == ""  # a clip's first frame
    assert foreign(pipeline, Split(latents, text), encoded, Pictures(RECORDS[:1])).startswith("it cannot be told")
    other = SimpleNamespace(max_tokens=8, text_pipeline="StableDiffusionXLPipeline")
    assert foreign(pipeline, Split(latents, text), other, pictures).startswith("its text encoder is not")


def write_evaluation(
    folder: Path, metrics: dict[str, float], units: dict[str, dict[str, float]], **more: object
) -> Path:
    (folder / "plots").mkdir(parents=True)
    protocol = {"sampler": "euler", "steps": 2, "guidance": 2.0, "resolution": 16, "reference_digest": "ab"}
    protocol |= {"comparison": "same", "train_captions": 5} | more
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "protocol.json").write_text(json.dumps(protocol))
    write_units(folder, units)
    return folder


def test_differences_are_paired_by_unit(tmp_path: Path):
    """A small gain that is the same for every caption is seen, however much captions differ."""
    hard = {str(n): float(n) for n in range(20)}
    easier = {name: value - 0.1 - 0.001 * (int(name) % 2) for name, value in hard.items()}
    champion = write_evaluation(tmp_path / "a", {"heldout_loss": 9.5, "kid": 1.0, "x": 0}, {"heldout_loss": hard})
    candidate = write_evaluation(tmp_path / "b", {"heldout_loss": 9.4, "kid": 0.9}, {"heldout_loss": easier})
    found = compare(candidate, champion)
    loss, kid = found.rows
    assert (loss.metric, loss.pairs.units, loss.verdict) == ("heldout_loss", 20, "better")
    assert loss.difference == pytest.approx(-0.1005)
    assert loss.pairs.high - loss.pairs.low == pytest.approx(0.0005, abs=1e-4)
    assert (kid.difference, kid.pairs, kid.verdict) == (pytest.approx(-0.1), None, "")
    assert found.only_one_has == ["x"]
    back = compare(champion, candidate).rows[0]
    assert back.verdict == "worse"


def test_evaluations_of_other_protocols_or_releases_are_refused(tmp_path: Path):
    one = write_evaluation(tmp_path / "a", {}, {})
    other = write_evaluation(tmp_path / "b", {}, {}, comparison="other", train_captions=6)
    with pytest.raises(LatentflowError, match="cannot be compared: they differ in train_captions"):
        compare(one, other)
    (tmp_path / "c").mkdir()
    with pytest.raises(LatentflowError, match="is not what `latentflow evaluate` writes"):
        page(one, tmp_path / "c")
    old = write_evaluation(tmp_path / "d", {}, {})
    (old / "protocol.json").write_text("{}")
    with pytest.raises(LatentflowError, match="older release"):
        Evaluation.read(old)
