"""Training: randomness by position, exact resume, and a loop that learns."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentflow import denoisers
from latentflow.data.encoded import PROMPTS, EncodedSet, describe_shard, write_shard
from latentflow.denoisers import FAMILIES, Denoiser
from latentflow.diffusion import FLOW, Diffusion
from latentflow.errors import LatentflowError
from latentflow.files import sha256_file
from latentflow.manifest import EncodedManifest
from latentflow.params import ModelParams, TrainParams, load
from latentflow.training import checkpoint, loop
from latentflow.training.batches import Batches
from latentflow.training.loop import Observer, learning_rate

PARAMS = Path(__file__).parents[2] / "params.yaml"
MODEL = ModelParams.model_validate(
    {
        "denoiser": "pixart",
        "unet": {"channels": [32], "attention": [True], "layers_per_block": 1, "head_dim": 8, "pooled_text": False},
        "pixart": {"layers": 1, "heads": 2, "head_dim": 16, "patch_size": 2},
        "auraflow": {"layers": 1, "single_layers": 0, "heads": 2, "head_dim": 16, "patch_size": 2},
    }
)


FEW = {
    "steps": 8,
    "batch_size": 8,
    "learning_rate": 0.002,
    "warmup_fraction": 0.1,
    "caption_dropout": 0.25,
    "ema_decay": 0.9,
    "sigma_mean": 0.0,
    "precision": "fp32",
    "log_every": 2,
    "validate_every": 4,
    "sample_every": 8,
    "checkpoint_every": 3,
}


def params(**changes: object) -> TrainParams:
    return load(PARAMS, [f"train.{name}={value}" for name, value in (FEW | changes).items()]).train


@pytest.fixture
def encoded(tmp_path: Path) -> EncodedSet:
    folder = tmp_path / "encoded"
    generator = torch.Generator().manual_seed(0)
    shards = []
    for split, count in (("train", 20), ("validation", 4), ("test", 4)):
        tensors = {
            "latents": torch.randn((count, 4, 4, 4), generator=generator),
            "latents_flipped": torch.randn((count, 4, 4, 4), generator=generator),
            "text": torch.randn((count, 3, 16), generator=generator),
            "text_mask": torch.ones((count, 3), dtype=torch.bool),
        }
        path = folder / "shards" / f"{split}-00000.safetensors"
        write_shard(path, tensors)
        shards.append(describe_shard(folder, path, split))
    extra = {"empty_text": torch.zeros(1, 3, 16), "empty_mask": torch.ones(1, 3, dtype=torch.bool)}
    extra |= {"text": torch.randn((2, 3, 16), generator=generator), "text_mask": torch.ones(2, 3, dtype=torch.bool)}
    save_file(extra, folder / PROMPTS)
    EncodedManifest(
        digest="d",
        fingerprint="f",
        inputs={},
        shards=shards,
        counts={"train": 20, "validation": 4, "test": 4},
        latent_shape=[4, 4, 4],
        latent_mean=[0.0] * 4,
        latent_std=[1.0] * 4,
        text_width=16,
        max_tokens=3,
        resolution=16,
        sample_prompts=["a", "b"],
        prompts_sha256=sha256_file(folder / PROMPTS),
        cased=False,
        origin={},
    ).write(folder)
    return EncodedSet.open(folder)


def train(encoded: EncodedSet, checkpoints: Path, **changes: object):
    denoiser = Denoiser(FAMILIES["pixart"], denoisers.build(MODEL, [4, 4, 4], 16, seed=0), FLOW)
    logged: list[tuple[int, dict[str, float]]] = []
    pictures: list[torch.Tensor] = []

    def start(progress: object) -> Observer:
        return Observer(
            lambda figures, step: logged.append((step, figures)), lambda x, step: pictures.append(x), lambda: "run"
        )

    model, curves = loop.train(params(**changes), Diffusion(), denoiser, encoded, checkpoints, "key", start)
    return model, curves, logged, pictures


def test_any_number_of_processes_sees_the_same_samples(encoded: EncodedSet) -> None:
    whole = Batches(params(), FLOW, encoded).at(5)
    parts = [Batches(params(), FLOW, encoded, rank, 2).at(5) for rank in range(2)]
    for name, tensor in vars(whole).items():
        together = torch.stack([vars(part)[name] for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(together, tensor), name


def test_an_epoch_visits_every_record_once(encoded: EncodedSet) -> None:
    batches = Batches(params(batch_size=5), FLOW, encoded)
    rows = torch.cat([batches._rows(start, 5) for start in range(0, 40, 5)])
    assert sorted(rows[:20].tolist()) == sorted(rows[20:].tolist()) == list(range(20))
    assert rows[:20].tolist() != rows[20:].tolist()
    assert Batches(params(), FLOW, encoded)._rows(17, 6).tolist() == rows[17:23].tolist()


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


def test_a_shard_with_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LatentflowError, match="NaN or infinity in `latents` for row 1"):
        write_shard(tmp_path / "a.safetensors", {"latents": torch.tensor([[0.0], [float("nan")]])})
    assert not list(tmp_path.iterdir())


def test_a_corrupt_shard_is_named(encoded: EncodedSet) -> None:
    path = encoded.folder / "shards" / "train-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(LatentflowError, match=r"train-00000\.safetensors is missing or not the file that was encoded"):
        EncodedSet.open(encoded.folder)
