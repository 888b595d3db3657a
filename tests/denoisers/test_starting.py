"""What training begins with: a pipeline's denoiser as it was saved, and refusals that name the parameter."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from native import SHAPE, WIDTH, sizes, text_encoder, write_pipeline
from safetensors.torch import load_file, save_file

from latentflow import denoisers
from latentflow.denoisers import FAMILIES, Captions
from latentflow.errors import LatentflowError

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    text = text_encoder(root / "vocab")
    return {name: write_pipeline(name, root / name, text) for name in FAMILIES}


def changed(pipeline: Path, copy: Path, subfolder: str, **values: object) -> Path:
    """A copy of a pipeline whose denoiser's config says something else."""
    shutil.copytree(pipeline, copy)
    path = copy / subfolder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return copy


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_training_begins_with_the_saved_weights_in_fp32(name: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = tmp_path / "half"
    shutil.copytree(pipelines[name], folder)
    path = folder / family.subfolder / FILE
    saved = {key: tensor.half() for key, tensor in load_file(path).items()}
    save_file(saved, path, {"format": "pt"})

    model = denoisers.start(sizes(name, pretrained=folder), SHAPE, Captions(WIDTH), seed=5)
    weights = model.state_dict()
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[key], saved[key].float()) for key in saved)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert model.training
    new = denoisers.start(sizes(name), SHAPE, Captions(WIDTH), seed=5)
    assert {p.stride() for p in new.parameters()} == {p.stride() for p in model.parameters()}
    built = denoisers.build(sizes(name), SHAPE, WIDTH, seed=5)
    assert all(map(torch.equal, new.parameters(), built.parameters()))


def test_a_model_folder_of_train_will_do(pipelines: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(pipelines["pixart"], tmp_path / "model" / "pipeline")
    model = denoisers.start(sizes("pixart", pretrained=tmp_path / "model"), SHAPE, Captions(WIDTH), seed=0)
    assert type(model).__name__ == "PixArtTransformer2DModel"


def test_the_digest_is_of_the_denoiser_alone(pipelines: dict[str, Path], tmp_path: Path) -> None:
    first = denoisers.start_digest(sizes("unet", pretrained=pipelines["unet"]))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(pipelines["unet"], elsewhere)
    (elsewhere / "generation.json").write_text("{}")
    assert denoisers.start_digest(sizes("unet", pretrained=elsewhere)) == first
    other = changed(elsewhere, tmp_path / "other", "unet", sample_size=4)
    assert denoisers.start_digest(sizes("unet", pretrained=other)) != first
    assert denoisers.start_digest(sizes("unet")) == {}


@pytest.mark.parametrize(
    ("name", "shapes", "width", "words"),
    [
        ("unet", [(16, 8, 8)], WIDTH, "takes latents of 4 channels, and the autoencoder makes 16"),
        ("pixart", [(4, 8, 8)], 384, "takes captions of width 16, and the text encoder gives 384"),
        ("auraflow", [(4, 8, 8)], 384, "takes captions of width 16, and the text encoder gives 384"),
        ("pixart", [(4, 8, 8), (4, 3, 6)], WIDTH, "patch_size 2, which does not divide latents of 3x6"),
        ("auraflow", [(4, 8, 8), (4, 6, 10)], WIDTH, "learned positions for latents up to 8x8, and .* has 6x10"),
    ],
)
def test_latents_and_captions_that_do_not_fit_are_refused(
    name: str, shapes: list[tuple[int, ...]], width: int, words: str, pipelines: dict[str, Path]
) -> None:
    with pytest.raises(LatentflowError, match=rf"^model\.pretrained: the denoiser in .*/{name}/\w+ .*{words}"):
        denoisers.check(sizes(name, pretrained=pipelines[name]), shapes, Captions(width))


def test_what_fits_is_not_refused(pipelines: dict[str, Path]) -> None:
    for name in FAMILIES:
        smaller = [(4, 8, 8), (4, 4, 6)]
        denoisers.check(sizes(name, pretrained=pipelines[name]), smaller, Captions(WIDTH))
    denoisers.check(sizes("unet"), [(4, 8, 8), (4, 5, 7)], Captions(WIDTH))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("pixart", {"out_channels": 8}, "predicts 8 channels for latents of 4"),
        ("pixart", {"use_additional_conditions": True}, r"more conditions than captions \(use_additional_conditions"),
        ("pixart", {"use_additional_conditions": None, "sample_size": 128}, "more conditions than captions"),
        (
            "unet",
            {"addition_embed_type": "text_time"},
            r"more conditions than captions \(addition_embed_type text_time",
        ),
        ("unet", {"in_channels": 9}, "takes latents of 9 channels"),
        ("auraflow", {"pos_embed_max_size": 9}, "positions for latents up to 6x6"),
    ],
)
def test_denoisers_that_need_more_than_training_gives_are_refused(
    name: str, values: dict[str, object], words: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(pipelines[name], tmp_path / name, FAMILIES[name].subfolder, **values)
    with pytest.raises(LatentflowError, match=rf"^model\.pretrained: .*{words}"):
        denoisers.start(sizes(name, pretrained=folder), SHAPE, Captions(WIDTH), seed=0)


def test_the_family_is_that_of_the_pipeline_whatever_the_parameters_say(pipelines: dict[str, Path]) -> None:
    params = sizes("pixart", pretrained=pipelines["unet"])
    assert denoisers.family_for(params) is FAMILIES["unet"]
    denoisers.check(params, [tuple(SHAPE)], Captions(WIDTH))


def test_what_is_no_pipeline_is_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(LatentflowError, match=r"^model\.pretrained: There is no folder"):
        denoisers.start_digest(sizes("unet", pretrained=tmp_path / "nowhere"))
    with pytest.raises(LatentflowError, match=r"^model\.pretrained: .* holds no diffusers pipeline"):
        denoisers.start_digest(sizes("unet", pretrained=tmp_path))
    folder = tmp_path / "foreign"
    shutil.copytree(pipelines["unet"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "KolorsPipeline"}))
    with pytest.raises(LatentflowError, match=r"^model\.pretrained: .* is a KolorsPipeline, not one of Stable"):
        denoisers.start_digest(sizes("unet", pretrained=folder))


def test_only_safetensors_are_loaded(pipelines: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(pipelines["unet"], tmp_path / "copy")
    path = tmp_path / "copy" / "unet" / FILE
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(LatentflowError, match=r"^model\.pretrained: .* only safetensors are loaded"):
        denoisers.check(sizes("unet", pretrained=tmp_path / "copy"), [tuple(SHAPE)], Captions(WIDTH))


def test_weights_that_are_not_whole_are_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(pipelines["pixart"], tmp_path / "copy")
    path = tmp_path / "copy" / "transformer" / FILE
    weights = load_file(path)
    params = sizes("pixart", pretrained=tmp_path / "copy")
    save_file({key: weights[key] for key in sorted(weights)[1:]}, path, {"format": "pt"})
    with pytest.raises(LatentflowError, match=rf"^model\.pretrained: .*{sorted(weights)[0]}"):
        denoisers.start(params, SHAPE, Captions(WIDTH), seed=0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LatentflowError, match=r"^model\.pretrained: .* cannot be loaded"):
        denoisers.start(params, SHAPE, Captions(WIDTH), seed=0)


@pytest.mark.parametrize(
    ("name", "shapes", "words"),
    [
        ("pixart", [(4, 3, 6)], r"model\.pixart\.patch_size 2 does not divide latents of 3x6"),
        ("auraflow", [(4, 8, 8), (4, 4, 8)], "model.denoiser: auraflow trains on pictures of one size"),
        ("auraflow", [(4, 4, 8)], "model.denoiser: auraflow trains on pictures of one size, a square"),
        (
            "unet",
            [(4, 3, 8, 8)],
            r"draws pictures, and encode\.clip_frames .*3x8x8.*: WanPipeline, LTXP",
        ),
    ],
)
def test_latents_that_a_new_denoiser_cannot_take_are_refused(
    name: str, shapes: list[tuple[int, ...]], words: str
) -> None:
    with pytest.raises(LatentflowError, match=words):
        denoisers.check(sizes(name), shapes, Captions(WIDTH))


@pytest.mark.parametrize(
    ("config", "before"),
    [
        (None, "flow"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "epsilon"}, "ddpm_epsilon"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow"),
        ({"_class_name": "LCMScheduler"}, ""),
    ],
)
def test_a_pipeline_trained_with_another_definition_is_told_of(
    config: dict[str, str] | None,
    before: str,
    pipelines: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(pipelines["unet"], folder)
    if config is not None:  # A pipeline that others trained has no diffusion.json of ours.
        (folder / "diffusion.json").unlink()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    params = sizes("unet", pretrained=folder)
    denoisers.warn_of_other_definition(params, before or "flow")
    denoisers.warn_of_other_definition(sizes("unet"), "edm")
    assert caplog.text == ""
    denoisers.warn_of_other_definition(params, "edm")
    assert (f"trained with definition {before}, and diffusion.definition is edm" in caplog.text) == bool(before)
