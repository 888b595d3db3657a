"""Training: randomness by position, exact resume, and a loop that learns."""

import json
from pathlib import Path

import pytest
import torch
from encoded_sets import Recipe, write_set

from latentflow import denoisers
from latentflow.data.encoded import EncodedSet
from latentflow.denoisers import FAMILIES, Denoiser
from latentflow.diffusion import FLOW, Diffusion
from latentflow.errors import LatentflowError
from latentflow.manifest import AutoencoderManifest
from latentflow.params import ModelParams, TrainInputs, TrainParams, load
from latentflow.steps import train as step
from latentflow.training import checkpoint, loop
from latentflow.training.batches import Batches
from latentflow.training.loop import Observer, learning_rate

PARAMS = Path(__file__).parents[2] / "params.yaml"
@pytest.fixture
def encoded(tmp_path: Path) -> EncodedSet:
    return encoded_set(tmp_path / "encoded")


def test_any_number_of_processes_sees_the_same_samples(encoded: EncodedSet) -> None:
    whole = Batches(params(), FLOW, encoded).at(5)
    parts = [Batches(params(), FLOW, encoded, slice(rank, None, 2)).at(5) for rank in range(2)]
    for name in ("x0", "xT", "sigma", "text", "mask", "dropped"):
        together = torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(together, getattr(whole, name)), name


@pytest.mark.parametrize(
    ("family", "shape", "words"),
    [
        ("pixart", (4, 3, 6), "patch_size 2 does not divide latents of 3x6"),
        ("auraflow", (4, 2, 6), "auraflow trains on pictures of one size"),
        ("unet", (4, 3, 4, 4), "no denoiser here trains on clips yet"),
    ],
)
def test_latents_that_do_not_fit_are_refused_before_training(
    family: str, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    AutoencoderManifest(digest="a", fingerprint="", inputs={}, weights="", resolution=8, trained=True).write(tmp_path)
    shards = [((4, 4, 4), 16), (shape, 16)]
    recipe = Recipe({"train": shards, "validation": shards, "test": shards}, inputs={"autoencoder": "a"})
    write_set(tmp_path / "encoded", recipe)
    inputs = TrainInputs(
        train=params(), model=MODEL.model_copy(update={"denoiser": family}), diffusion=load(PARAMS).diffusion
    )
    with pytest.raises(LatentflowError, match=words):
        step.run(inputs, step.Sources(tmp_path / "encoded", tmp_path), tmp_path / "model")


@pytest.mark.parametrize("family", ["pixart", "unet"])
def test_pictures_of_several_shapes_train_together(family: str, tmp_path: Path) -> None:
    square, wide = (4, 4, 4), (4, 2, 6)
    write_set(
        tmp_path / "encoded",
        Recipe({"train": [(square, 16), (wide, 16)], "validation": [(square, 4), (wide, 4)], "test": [(square, 4)]}),
    )
    encoded = EncodedSet.open(tmp_path / "encoded")
    _, curves, *_ = train(encoded, tmp_path / "checkpoints", family)
    assert all(torch.isfinite(torch.tensor(point)).all() for point in curves["train"])
    assert len(curves["validation_by_sigma"]) == 10


def test_dropped_captions_are_the_empty_one(encoded: EncodedSet) -> None:
    assert not Batches(params(caption_dropout=1.0), FLOW, encoded).at(0).text.any()
    assert Batches(params(caption_dropout=0.0), FLOW, encoded).at(0).text.any(dim=(1, 2)).all()


def test_a_killed_run_resumes_bit_for_bit(encoded: EncodedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, curves, _, pictures = train(encoded, tmp_path / "whole")
    save = checkpoint.save

    def killed_after_saving(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed_after_saving)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(encoded, tmp_path / "killed")
    monkeypatch.undo()
    resumed, resumed_curves, logged, resumed_pictures = train(encoded, tmp_path / "killed")
    assert next(step for step, _ in logged) > 6
    for (name, first), second in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(first, second), name
    assert resumed_curves["validation"] == curves["validation"]
    assert torch.equal(resumed_pictures[-1], pictures[-1])


def test_checkpoints_hold_safetensors_and_json_only(encoded: EncodedSet, tmp_path: Path) -> None:
    train(encoded, tmp_path)
    (last,) = tmp_path.glob("step-*")
    assert {path.suffix for path in last.iterdir()} == {".safetensors", ".json"}
    assert json.loads((last / "progress.json").read_text())["step"] == 8


def test_it_learns(encoded: EncodedSet, tmp_path: Path) -> None:
    _, curves, logged, _ = train(
        encoded, tmp_path, steps=250, log_every=25, validate_every=250, learning_rate=0.01, caption_dropout=0.0
    )
    assert curves["train"][-1][1] < 0.9 * curves["train"][0][1]
    assert {"train/loss", "train/gradient_norm", "train/learning_rate", "train/images_per_second"} <= set(logged[0][1])
    assert [row[0] for row in curves["validation_by_sigma"]] == sorted(row[0] for row in curves["validation_by_sigma"])


def test_a_loss_that_is_not_finite_stops_the_run(encoded: EncodedSet, tmp_path: Path) -> None:
    with pytest.raises(LatentflowError, match=r"the loss is nan at step \d+: lower train\.learning_rate"):
        train(encoded, tmp_path, learning_rate=1e30, warmup_fraction=0.0, steps=40)


def test_learning_rate_shapes() -> None:
    for schedule in ("cosine", "one_cycle"):
        chosen = params(steps=100, schedule=schedule)
        rates = [learning_rate(chosen, step) for step in range(100)]
        peak = rates.index(max(rates))
        assert 8 <= peak <= 10
        assert rates[:peak] == sorted(rates[:peak])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert rates[-1] < 1e-5
    assert learning_rate(params(steps=100, schedule="constant"), 99) == 0.002
