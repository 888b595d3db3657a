"""Any number of processes and passes trains the same model; what cannot be divided or combined is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import trainings
from safetensors.torch import load_file

from latentflow.errors import LatentflowError, ParamsError
from latentflow.training.parallel import share

STEPS = ("steps=20", "log_every=1", "validate_every=20", "sample_every=20")


def ran(folder: Path, *changes: str, processes: int = 1, family: str = "pixart") -> list[float]:
    """The loss of every step."""
    folder.mkdir(exist_ok=True)
    trainings.encoded_set(folder / "set")
    trainings.finished(folder, *STEPS, *changes, processes=processes, family=family)
    return [row[1] for row in json.loads((folder / "out-0" / "curves.json").read_text())["train"]]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp64", 1e-9)])
def test_two_processes_train_as_one(precision: str, tolerance: float, tmp_path: Path) -> None:
    setting = f'precision="{precision}"'
    one = ran(tmp_path / "one", setting)
    two = ran(tmp_path / "two", setting, processes=2)
    assert two == pytest.approx(one, rel=tolerance)
    assert one != two or precision == "fp32"


def test_passes_add_up_to_the_same_step(tmp_path: Path) -> None:
    one = ran(tmp_path / "one", 'precision="fp64"')
    many = ran(tmp_path / "many", 'precision="fp64"', "per_device_batch_size=2")
    assert many == pytest.approx(one, rel=1e-9)


def test_accumulation_and_processes_together(tmp_path: Path) -> None:
    one = ran(tmp_path / "one", 'precision="fp64"')
    both = ran(tmp_path / "both", 'precision="fp64"', "per_device_batch_size=2", processes=2)
    assert both == pytest.approx(one, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["unet", "auraflow"])
def test_every_family_trains_on_two_processes(family: str, tmp_path: Path) -> None:
    one = ran(tmp_path / "one", 'precision="fp64"', family=family)
    two = ran(tmp_path / "two", 'precision="fp64"', processes=2, family=family)
    assert two == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("more", [(), ('offload=["optimizer"]',), ("gradient_checkpointing=true",)])
def test_shards_train_as_one_process_and_resume(more: tuple[str, ...], tmp_path: Path) -> None:
    one = ran(tmp_path / "one", 'precision="fp64"')
    sharded = ran(tmp_path / "sharded", 'precision="fp64"', 'sharding="fsdp2"', *more, processes=2)
    assert sharded == pytest.approx(one, rel=1e-9)
    weights = [load_file(tmp_path / name / "out-0" / "weights.safetensors") for name in ("one", "sharded")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-7, atol=1e-9)
    # From a checkpoint of two processes one goes on: a checkpoint is whole.
    shutil.copytree(tmp_path / "sharded" / "checkpoints" / "step-000000018", tmp_path / "on/checkpoints/step-000000018")
    assert ran(tmp_path / "on", 'precision="fp64"', "keep_last=1") == pytest.approx(one, rel=1e-9)
    assert "going on from step 18" in trainings.said(tmp_path / "on")


def test_a_unet_is_sharded_too(tmp_path: Path) -> None:
    one = ran(tmp_path / "one", 'precision="fp64"', family="unet")
    sharded = ran(tmp_path / "sharded", 'precision="fp64"', 'sharding="fsdp2"', processes=2, family="unet")
    assert sharded == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shards_compute_as_replicas_do(precision: str, tmp_path: Path) -> None:
    encoded = trainings.encoded_set(tmp_path / "set")
    changes = {"precision": precision, "validate_every": 2}
    plain, sharded = (
        trainings.train(encoded, tmp_path / name, changes=changes | {"sharding": name}).curves
        for name in ("replicate", "fsdp2")
    )
    for kind in ("train", "validation"):
        for row, other in zip(plain[kind], sharded[kind], strict=True):
            assert other[1] == pytest.approx(row[1], rel=5e-3 if precision == "bf16" else 1e-6)


@pytest.mark.parametrize(
    ("batch", "most", "processes", "passes"), [(64, 0, 1, 1), (64, 16, 1, 4), (64, 16, 2, 2), (64, 64, 4, 1)]
)
def test_the_global_batch_is_shared_evenly(batch: int, most: int, processes: int, passes: int) -> None:
    params = trainings.params({"batch_size": batch, "per_device_batch_size": most})
    shares = [share(params, rank, processes) for rank in range(processes)]
    assert {one.passes for one in shares} == {passes}
    places = torch.cat([one.places(number) for one in shares for number in range(passes)])
    assert sorted(places.tolist()) == list(range(batch))


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(LatentflowError, match=r"train\.batch_size 8 is the global batch .* of the 3 processes"):
        share(trainings.params(), 0, 3)
    with pytest.raises(LatentflowError, match=r"12 on 2 processes is 6 samples each, not a multiple of .* 4"):
        share(trainings.params({"batch_size": 12, "per_device_batch_size": 4}), 0, 2)
    with pytest.raises(ParamsError, match="batch_size 8 is not a multiple of per_device_batch_size 3"):
        trainings.params({"per_device_batch_size": 3})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offload": ["optimizer"]}, "offload of the optimizer needs sharding fsdp2"),
        ({"sharding": "fsdp2", "optimizer": "muon"}, "sharding fsdp2 works with optimizer adamw, not muon"),
        ({"ema_lengths": [0.1]}, "ema_lengths needs two different lengths or none"),
        ({"adapter.kind": "lora", "trainable": ["*"]}, "an adapter is trained by itself"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ParamsError, match=words):
        trainings.params(changes)
