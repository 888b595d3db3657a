"""Training: randomness by position, exact resume, and a loop that learns."""

import json
from pathlib import Path

import pytest
import torch
from encoded_sets import Recipe, write_set
from trainings import PARAMS, encoded_set, model_params, params, train

from latentflow.data.encoded import EncodedSet
from latentflow.diffusion import FLOW
from latentflow.errors import LatentflowError
from latentflow.manifest import AutoencoderManifest
from latentflow.params import TrainInputs, load
from latentflow.steps import train as step
from latentflow.training.batches import Batches
from latentflow.training.loop import learning_rate
from latentflow.training.parallel import Parallel
from latentflow.training.vault import Vault, open_checkpoint


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
        ("unet", (4, 3, 4, 4), r"draws pictures, and encode\.clip_frames makes latents of clips, 3x4x4"),
    ],
)
def test_latents_that_do_not_fit_are_refused_before_training(
    family: str, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    AutoencoderManifest(digest="a", fingerprint="", inputs={}, weights="", resolution=8, trained=True).write(tmp_path)
    shards = [((4, 4, 4), 16), (shape, 16)]
    recipe = Recipe({"train": shards, "validation": shards, "test": shards}, inputs={"autoencoder": "a"})
    write_set(tmp_path / "encoded", recipe)
    inputs = TrainInputs(train=params(), model=model_params(family), diffusion=load(PARAMS).diffusion)
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
    curves = train(encoded, tmp_path / "checkpoints", family).curves
    assert all(torch.isfinite(torch.tensor(point)).all() for point in curves["train"])
    assert len(curves["validation_by_sigma"]) == 10


def test_dropped_captions_are_the_empty_one(encoded: EncodedSet) -> None:
    assert not Batches(params({"caption_dropout": 1.0}), FLOW, encoded).at(0).text.any()
    assert Batches(params({"caption_dropout": 0.0}), FLOW, encoded).at(0).text.any(dim=(1, 2)).all()


def test_a_killed_run_resumes_bit_for_bit(encoded: EncodedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(encoded, tmp_path / "whole")
    save = Vault.save

    def killed_after_saving(self: Vault, *args: object) -> None:
        save(self, *args, wait=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(Vault, "save", killed_after_saving)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(encoded, tmp_path / "killed")
    monkeypatch.undo()
    resumed = train(encoded, tmp_path / "killed")
    assert next(step for step, _ in resumed.logged) > 6
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[name]), name
    assert resumed.curves == whole.curves
    assert torch.equal(resumed.pictures[-1], whole.pictures[-1])


def test_checkpoints_hold_safetensors_and_json_only(encoded: EncodedSet, tmp_path: Path) -> None:
    train(encoded, tmp_path)
    last = sorted(tmp_path.glob("step-*"))[-1]
    assert {path.suffix for path in last.iterdir()} == {".safetensors", ".json"}
    assert json.loads((last / "progress.json").read_text())["step"] == 8


def test_the_last_the_marked_and_the_best_checkpoints_stay(encoded: EncodedSet, tmp_path: Path) -> None:
    outcome = train(
        encoded,
        tmp_path,
        changes={"steps": 24, "checkpoint_every": 2, "validate_every": 2, "keep_last": 2, "keep_every": 10},
    )
    kept = {int(path.name[5:]) for path in tmp_path.glob("step-*")}
    losses = {int(row[0]): row[1] for row in outcome.curves["validation"] if row[0] < 24}
    assert kept == {10, 20, 22, 24, min(losses, key=lambda step: (losses[step], -step))}


@pytest.mark.parametrize("family", ["pixart", "unet", "auraflow"])
def test_a_training_goes_on_from_a_named_checkpoint(family: str, encoded: EncodedSet, tmp_path: Path) -> None:
    whole = train(encoded, tmp_path / "whole", family, changes={"keep_last": 10})
    named = open_checkpoint(tmp_path / "whole" / "step-000000003")
    resumed = train(encoded, tmp_path / "other", family, named=named)
    assert resumed.logged[0][0] == 4
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[name]), name


def test_it_learns(encoded: EncodedSet, tmp_path: Path) -> None:
    changes = {"steps": 250, "log_every": 25, "validate_every": 250, "learning_rate": 0.01, "caption_dropout": 0.0}
    outcome = train(encoded, tmp_path, changes=changes | {"checkpoint_every": 100})
    assert outcome.curves["train"][-1][1] < 0.9 * outcome.curves["train"][0][1]
    sigmas = [row[0] for row in outcome.curves["validation_by_sigma"]]
    assert sigmas == sorted(sigmas)


def test_what_is_told_of_the_steps(encoded: EncodedSet, tmp_path: Path) -> None:
    logged = dict(train(encoded, tmp_path).logged[-2:])
    figures = logged[8] | dict(train(encoded, tmp_path / "again").logged[0][1])
    assert {
        "train/loss",
        "train/gradient_norm",
        "train/learning_rate",
        "train/images_per_second",
        "train/data_wait_share",
        "train/memory_gb",
        "train/flops_utilisation",
    } <= figures.keys()
    assert [name for name in figures if name.startswith("train/loss_at_time/")]
    assert 0 <= figures["train/data_wait_share"] <= 1
    assert 0 < figures["train/flops_utilisation"] < 1


@pytest.mark.parametrize("optimizer", ["adafactor", "muon", "adamw_8bit"])
def test_other_optimizers_learn_too(optimizer: str, encoded: EncodedSet, tmp_path: Path) -> None:
    changes = {"steps": 120, "log_every": 20, "learning_rate": 0.01, "optimizer": optimizer, "caption_dropout": 0.0}
    curves = train(encoded, tmp_path, changes=changes).curves["train"]
    assert curves[-1][1] < curves[0][1]


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp16"},
        {"precision": "bf16"},
        {"gradient_checkpointing": True},
        {"attention": "math", "gradient_checkpointing": True},
        {"offload": ["activations"]},
        {"per_device_batch_size": 2},
        {"deterministic": True},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
)
def test_ways_to_compute_agree(changes: dict[str, object], encoded: EncodedSet, tmp_path: Path) -> None:
    plain, other = train(encoded, tmp_path / "plain"), train(encoded, tmp_path / "other", changes=changes)
    coarse = "precision" in changes
    first, second = plain.curves["train"], other.curves["train"]
    for row, other_row in zip(first, second, strict=True):
        assert other_row[1] == pytest.approx(row[1], rel=0.02 if coarse else 1e-5)


def test_a_gradient_that_overflows_fp16_is_passed_over(
    encoded: EncodedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    monkeypatch.setattr(Parallel, "scaler", lambda self: large)
    outcome = train(encoded, tmp_path, changes={"precision": "fp16", "steps": 40, "checkpoint_every": 1})
    assert large.get_scale() < 2.0**40
    assert torch.isfinite(torch.tensor(outcome.curves["train"])).all()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_records(encoded: EncodedSet, tmp_path: Path) -> None:
    changes = {"learning_rate": 1e30, "warmup_fraction": 0.0, "steps": 40, "checkpoint_every": 1}
    with pytest.raises(LatentflowError) as raised:
        train(encoded, tmp_path, changes=changes)
    words = str(raised.value)
    assert "at step" in words
    assert "'r" in words
    assert "(σ 0." in words
    assert "Lower train.learning_rate (now 1e+30)" in words
    assert "the last good one: " in words


def test_a_loss_that_leaps_stops_the_run(encoded: EncodedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = Batches.at

    def damaged(self: Batches, step: int):
        batch = at(self, step)
        if step == 21:
            batch.x0[3] *= 1000
        return batch

    monkeypatch.setattr(Batches, "at", damaged)
    changes = {"steps": 40, "checkpoint_every": 5, "spike_factor": 10}
    with pytest.raises(LatentflowError, match=r"leapt to .* from about .* at step 22: largest at 'r\d+'") as raised:
        train(encoded, tmp_path, changes=changes)
    _, rows = Batches(params(changes), FLOW, encoded).order.at(21)
    assert f"largest at 'r{rows[3]}'" in str(raised.value)
    assert "checkpoint of step 20" in str(raised.value)
    # What was poisoned is in no checkpoint.
    assert train(encoded, tmp_path, changes=changes | {"steps": 21}).curves["train"]


def test_learning_rate_shapes() -> None:
    for schedule in ("cosine", "one_cycle"):
        chosen = params({"steps": 100, "schedule": schedule})
        rates = [learning_rate(chosen, step) for step in range(100)]
        peak = rates.index(max(rates))
        assert 8 <= peak <= 10
        assert rates[:peak] == sorted(rates[:peak])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert rates[-1] < 1e-5
    assert learning_rate(params({"steps": 100, "schedule": "constant"}), 99) == 0.002
