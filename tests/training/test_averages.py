"""Averages of any length from snapshots of two: compared with averages that were tracked along a known walk."""

import copy
import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from tiny import build_pipeline
from torch import Tensor
from typer.testing import CliRunner

from latentflow.cli import app
from latentflow.errors import LatentflowError
from latentflow.files import digest_folder
from latentflow.manifest import ModelManifest
from latentflow.steps import average as step
from latentflow.training.averages import Snapshots, combine, gamma, nearest
from latentflow.training.ema import power

STEPS, TRACKED, WANTED = 2000, (0.05, 0.1), (0.04, 0.07, 0.12)


Averages = dict[float, dict[str, Tensor]]


@pytest.fixture(scope="module")
def walk() -> dict[int, Averages]:
    """By step, the averages of all lengths along a random walk of weights such as models have."""
    generator = torch.Generator().manual_seed(7)
    weights = {"weight": 0.05 * torch.randn(40, 25, generator=generator), "bias": torch.full((25,), 0.5)}
    averages = {length: {name: tensor.double() for name, tensor in weights.items()} for length in (*TRACKED, *WANTED)}
    decays = {length: power(length) for length in averages}
    seen = {}
    for update in range(1, STEPS + 1):
        for name, tensor in weights.items():
            tensor += 1e-3 * torch.randn(tensor.shape, generator=generator)
            now = tensor.double()
            for length, average in averages.items():
                average[name].lerp_(now, 1 - decays[length](update - 1))
        if update in every(16):
            seen[update] = copy.deepcopy(averages)
    return seen


def keep(walk: dict[int, Averages], count: int, snapshots: Snapshots) -> None:
    for at in every(count):
        for length in TRACKED:
            snapshots.save(at, length, walk[at][length])


def every(count: int) -> list[int]:
    return [STEPS * (number + 1) // count for number in range(count)]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


def test_gamma_gives_the_length() -> None:
    for length in (0.01, 0.05, 0.1, 0.25):
        found = gamma(length)
        assert (found + 1) / ((found + 2) ** 2 * (found + 3)) == pytest.approx(length**2, rel=1e-9)
    # As the paper gives them.
    assert [round(gamma(length), 2) for length in (0.05, 0.1)] == [16.97, 6.94]
    for length in (0.0, -0.1, 0.3):
        with pytest.raises(LatentflowError, match=f"at most 0.25, found {length:g}"):
            gamma(length)


def test_tracking_weighs_by_the_profile() -> None:
    decay, shares = power(0.1), torch.zeros(50, dtype=torch.float64)
    for done in range(50):
        shares.lerp_(torch.nn.functional.one_hot(torch.tensor(done), 50).double(), 1 - decay(done))
    ends = (torch.arange(51, dtype=torch.float64) / 50) ** (gamma(0.1) + 1)
    assert torch.allclose(shares, ends.diff())


# Half of what was measured, or less; fp16's rounding is what is left at 16 snapshots.
@pytest.mark.parametrize(
    ("count", "precision", "factors"),
    [(8, "fp16", (5, 25, 25)), (16, "fp16", (15, 50, 40)), (16, "fp32", (35, 200, 200))],
)
def test_rebuilt_is_much_nearer_than_what_was_tracked(
    walk: dict[int, Averages],
    tmp_path: Path,
    count: int,
    precision: Literal["fp16", "fp32"],
    factors: tuple[int, int, int],
) -> None:
    keep(walk, count, Snapshots(tmp_path, precision))
    averages = walk[STEPS]
    for length, factor in zip(WANTED, factors, strict=True):
        rebuilt = combine(Snapshots(tmp_path), length, STEPS)
        away = min(distance(averages[tracked], averages[length]) for tracked in TRACKED)
        assert distance(rebuilt, averages[length]) * factor < away


def test_a_tracked_length_is_its_snapshot(walk: dict[int, Averages], tmp_path: Path) -> None:
    keep(walk, 8, Snapshots(tmp_path, "fp32"))
    assert distance(combine(Snapshots(tmp_path), 0.1, STEPS), walk[STEPS][0.1]) < 1e-5


def test_weights_that_stand_still_are_kept() -> None:
    profiles = [(at, gamma(length)) for at in every(8) for length in TRACKED]
    for length in (0.03, 0.07, 0.15):
        shares, missed = nearest(profiles, (STEPS, gamma(length)))
        assert shares.sum() == pytest.approx(1, abs=1e-9)
        assert missed < 0.11


def test_an_earlier_step(tmp_path: Path) -> None:
    snapshots, still = Snapshots(tmp_path), {"weight": torch.full((3,), 0.25)}
    for at in every(8):
        for length in TRACKED:
            snapshots.save(at, length, still)
    assert torch.allclose(combine(snapshots, 0.07, 1000)["weight"], still["weight"])


@pytest.mark.parametrize(("length", "at"), [(0.01, STEPS), (0.25, STEPS), (0.07, 1900), (0.07, 100)])
def test_what_cannot_be_rebuilt_is_refused(tmp_path: Path, length: float, at: int) -> None:
    snapshots = Snapshots(tmp_path)
    for kept in every(8):
        for tracked in TRACKED:
            snapshots.save(kept, tracked, {"weight": torch.ones(2)})
    with pytest.raises(LatentflowError, match=rf"length {length:g} at step {at} cannot be made of .*% of it would"):
        combine(snapshots, length, at)


def test_snapshots_are_whole_and_the_same_when_a_run_goes_on(tmp_path: Path) -> None:
    snapshots, tensors = Snapshots(tmp_path / "averages"), {"b": torch.rand(3), "a": torch.rand(2, 2)}

    def run() -> None:
        for at in (10, 20):
            for length in TRACKED:
                snapshots.save(at, length, tensors)

    run()
    first = digest_folder(snapshots.folder)
    # Killed between the file and the index.
    left = snapshots.folder / "step-000000030-length-0.05.safetensors"
    shutil.copy(snapshots.folder / snapshots.read()[-1].file, left)
    run()
    assert [(one.step, one.length) for one in snapshots.read()] == [(10, 0.05), (10, 0.1), (20, 0.05), (20, 0.1)]
    left.unlink()
    assert digest_folder(snapshots.folder) == first
    stored = load_file(snapshots.folder / snapshots.read()[0].file)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert all(torch.allclose(stored[name].float(), tensors[name], rtol=2**-11) for name in tensors)


def test_a_value_beyond_fp16_is_refused_and_kept_in_fp32(tmp_path: Path) -> None:
    with pytest.raises(LatentflowError, match="the average of scale does not fit float16: its largest value is 70000"):
        Snapshots(tmp_path).save(1, 0.05, {"scale": torch.tensor([7e4])})
    Snapshots(tmp_path, "fp32").save(1, 0.05, {"scale": torch.tensor([7e4])})
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "averages.json",
        "step-000000001-length-0.05.safetensors",
    ]


def test_damaged_and_missing_snapshots_are_named(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    for length in TRACKED:
        snapshots.save(8, length, {"weight": torch.ones(2)})
    path = tmp_path / snapshots.read()[0].file
    path.write_bytes(b"something else")
    with pytest.raises(LatentflowError, match=f"{path} is damaged"):
        combine(snapshots, 0.07, 8)
    path.unlink()
    with pytest.raises(LatentflowError, match=f"{path} is missing"):
        combine(snapshots, 0.07, 8)
    (tmp_path / "averages.json").write_text("[]")
    with pytest.raises(LatentflowError, match=r"averages\.json is not what `latentflow train` writes"):
        snapshots.read()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What train leaves behind, with averages of two of the denoiser's weights."""
    folder = tmp_path / "model"
    shutil.copytree(build_pipeline(tmp_path / "built"), folder / "pipeline")
    (folder / "metrics.json").write_text('{"validation_loss": 0.5}')
    (folder / "plots").mkdir()
    (folder / "plots" / "train.csv").write_text("step,loss\n")
    weights = load_file(weights_in(folder))
    for at in every(8):
        for length in TRACKED:
            tensors = {name: weights[name] + at / STEPS for name in ("conv_in.bias", "conv_out.weight")}
            Snapshots(folder / "averages").save(at, length, tensors)
    ModelManifest(
        digest=digest_folder(folder / "pipeline"),
        fingerprint="f",
        inputs={"encoded": "e"},
        pipeline_class="StableDiffusionPipeline",
        resolution=16,
        mlflow_run_id="run",
        lineage={"git_commit": "c0ffee"},
    ).write(folder)
    return folder


def weights_in(folder: Path) -> Path:
    return folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"


def test_a_model_of_another_length(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model-008"
    shown = CliRunner().invoke(app, ["average", "--model", str(model), "--length", "0.08", "--out", str(out)])
    assert shown.exit_code == 0, shown.exception
    assert f"next: latentflow evaluate --model {out}" in shown.stdout
    before, after = load_file(weights_in(model)), load_file(weights_in(out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"conv_in.bias", "conv_out.weight"}
    assert all(tensor.dtype == before[name].dtype for name, tensor in after.items())
    old, new = ModelManifest.read(model), ModelManifest.read(out)
    assert new.digest == digest_folder(out / "pipeline") != old.digest
    assert new.fingerprint != old.fingerprint
    assert new.inputs == {"encoded": "e", "model": old.digest}
    assert new.lineage == {"git_commit": "c0ffee", "averaged_length": "0.08"}
    assert new.mlflow_run_id == "run"
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "pipeline", "plots"]


def test_the_new_model_draws_and_is_the_same_again(model: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    first, second = (step.run(model, 0.08, tmp_path / name) for name in ("one", "two"))
    assert first == second
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "one" / "pipeline")
    assert torch.equal(pipeline.unet.conv_in.bias, load_file(weights_in(tmp_path / "one"))["conv_in.bias"])
    assert step.run(model, 0.06, tmp_path / "three").digest != first.digest


def test_folders_that_cannot_be_averaged(model: Path, tmp_path: Path) -> None:
    for out in (model, tmp_path):
        with pytest.raises(LatentflowError, match=f"--out {out} would replace {model}"):
            step.run(model, 0.08, out)
    with pytest.raises(LatentflowError, match=r"length 0\.01 at step 2000 cannot be made"):
        step.run(model, 0.01, tmp_path / "out")
    shutil.rmtree(model / "averages")
    with pytest.raises(LatentflowError, match=f"{model} holds no averages to combine: set train.ema_lengths"):
        step.run(model, 0.08, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"conv_in.weights": torch.ones(2)}, "has no weights conv_in.weights, of which there are averages"),
        ({"conv_in.bias": torch.ones(2)}, r"conv_in.bias is \(8,\), its average is \(2,\)"),
    ],
)
def test_averages_of_another_model(model: Path, tmp_path: Path, tensors: dict[str, Tensor], said: str) -> None:
    shutil.rmtree(model / "averages")
    for length in TRACKED:
        Snapshots(model / "averages").save(STEPS, length, tensors)
    with pytest.raises(LatentflowError, match=said):
        step.run(model, 0.08, tmp_path / "out")
    assert not (tmp_path / "out").exists()
