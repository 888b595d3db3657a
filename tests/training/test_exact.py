"""A training that is killed, asked to end, or named goes on as if nothing had been; or is refused with the reason."""

import json
import random
import time
from pathlib import Path

import pytest
import torch
import trainings
from safetensors.torch import load_file

from latentflow.errors import EXIT_PREEMPTED

STEPS = ("steps=60", "checkpoint_every=3", "validate_every=10", "sample_every=20", "log_every=4")


def results(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, list[list[float]]]]:
    out = folder / "out-0"
    return load_file(out / "weights.safetensors"), json.loads((out / "curves.json").read_text())


def same(first: Path, second: Path) -> None:
    (weights, curves), (others, other_curves) = results(first), results(second)
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name
    assert curves == other_curves
    logged, other_logged = (json.loads((folder / "out-0" / "logged.json").read_text()) for folder in (first, second))
    assert other_logged
    assert logged[-len(other_logged) :] == other_logged


def prepared(folder: Path) -> Path:
    folder.mkdir()
    trainings.encoded_set(folder / "set")
    return folder


def reached(folder: Path) -> int:
    """The newest checkpoint's step."""
    return max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")), default=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ('optimizer="muon"', "per_device_batch_size=4"),
        ('optimizer="adamw_8bit"', 'loss_weighting="min_snr_gamma"'),
        ('optimizer="adafactor"', 'precision="fp16"', "ema_lengths=[0.05,0.1]"),
        ('ideas={"contrastive":0.05,"tread":0.5}', "gradient_checkpointing=true"),
    ],
)
def test_killed_at_random_points_it_ends_as_one_that_was_not(more: tuple[str, ...], tmp_path: Path) -> None:
    whole, broken = prepared(tmp_path / "whole"), prepared(tmp_path / "broken")
    trainings.finished(whole, *STEPS, *more)
    chance, kills = random.Random(0), 0
    while kills < 6:
        before = reached(broken)
        (process,) = trainings.start(broken, *STEPS, *more)
        # From somewhere in the first step to several checkpoints on, or in the middle of writing one.
        wanted, deadline = before + chance.choice([0, 3, 6]), time.monotonic() + 60
        while reached(broken) < wanted and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.join()
        kills += 1
    assert 0 < reached(broken) < 60
    trainings.finished(broken, *STEPS, *more)
    same(whole, broken)


def test_sigterm_leaves_a_checkpoint_and_an_exit_code_of_its_own(tmp_path: Path) -> None:
    whole, asked = prepared(tmp_path / "whole"), prepared(tmp_path / "asked")
    settings = ("steps=60", "checkpoint_every=10", "validate_every=30", "sample_every=60")
    trainings.finished(whole, *settings)
    (process,) = trainings.start(asked, *settings)
    while reached(asked) < 10 and process.is_alive():
        time.sleep(0.002)
    process.terminate()
    process.join()
    assert process.exitcode == EXIT_PREEMPTED, trainings.said(asked)
    assert "goes on from the checkpoint of step" in trainings.said(asked)
    assert reached(asked) >= 10
    trainings.finished(asked, *settings)
    same(whole, asked)


def test_a_checkpoint_is_made_by_the_clock_too(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "timed")
    trainings.finished(folder, "steps=12", "checkpoint_every=1000", "checkpoint_minutes=0.0001", "keep_last=100")
    assert len(list((folder / "checkpoints").glob("step-*"))) > 3
