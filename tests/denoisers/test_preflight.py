"""Parts that do not belong together, or cannot be had, are refused in a sentence before anything is encoded."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import CHECKPOINTS, SIDE
from encoding import PARAMS, build_text_encoder
from hubs import REPOSITORY, SHA, holding, refusing
from safetensors.torch import load_file, save_file

from latentflow import denoisers
from latentflow.denoisers import preflight
from latentflow.denoisers.preflight import check_together
from latentflow.encoders import captions
from latentflow.errors import LatentflowError
from latentflow.files import copy_tree_or_file, digest_folder
from latentflow.params import Params, load

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("made")
    some = {
        "sd": "stable-diffusion-1.5",
        "xl": "stable-diffusion-xl",
        "sd3": "stable-diffusion-3",
        "flux": "flux.1-dev",
    }
    folders = {short: CHECKPOINTS[name].write(root / short) for short, name in some.items()}
    return folders | {"bert": build_text_encoder(root / "bert")}


def named(vae: Path | str, text: Path | str, model: Path | str, tokens: int = 0, *more: str) -> Params:
    return load(
        PARAMS,
        [
            f"autoencoder.pretrained={vae}",
            f"autoencoder.resolution={SIDE}",
            f"encode.text_encoder={text}",
            f"encode.max_tokens={tokens}",
            f"model.pretrained={model}",
            *more,
        ],
    )


@pytest.mark.parametrize(
    ("vae", "text", "model", "tokens"),
    [
        ("sd", "sd", "sd", 0),
        ("xl", "xl", "xl", 77),
        ("sd3", "sd3", "sd3", 0),
        ("flux", "flux", "flux", 0),
        ("xl", "bert", "sd", 12),
    ],
)
def test_what_belongs_together_is_not_refused(
    vae: str, text: str, model: str, tokens: int, made: dict[str, Path]
) -> None:
    check_together(named(made[vae], made[text], made[model], tokens))


@pytest.mark.parametrize(
    ("vae", "text", "model", "tokens", "words"),
    [
        ("sd3", "sd", "sd", 0, r"model\.pretrained: .*takes latents of 4 channels, and the autoencoder makes 16"),
        ("xl", "xl", "sd", 0, r"a StableDiffusionPipeline, and encode.text_encoder reads captions as a StableDiff.*XL"),
        ("xl", "bert", "xl", 12, r"StableDiffusionXLPipeline, and encode.text_encoder .* with a single model"),
        ("sd", "sd", "sd", 12, r"encode\.max_tokens 12: .* reads captions as 77 tokens; set it to 0"),
        ("sd", "bert", "sd", 0, r"encode\.max_tokens 0 leaves the length to a pipeline, and .*bert is none"),
    ],
)
def test_what_does_not_is_refused(
    vae: str, text: str, model: str, tokens: int, words: str, made: dict[str, Path]
) -> None:
    with pytest.raises(LatentflowError, match=words):
        check_together(named(made[vae], made[text], made[model], tokens))


def test_widths_that_do_not_fit_and_a_new_denoiser_with_several_text_models(
    made: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(made["xl"], tmp_path / "wide", "unet/config.json", cross_attention_dim=48)
    with pytest.raises(LatentflowError, match=r"takes captions of width 48, and the text encoder gives 40"):
        check_together(named(made["xl"], made["xl"], folder))
    folder = copied(made["xl"], tmp_path / "pooled", "unet/config.json", projection_class_embeddings_input_dim=80)
    with pytest.raises(LatentflowError, match=r"takes pooled captions of width 32, and the text encoder gives 24"):
        check_together(named(made["xl"], made["xl"], folder))
    with pytest.raises(LatentflowError, match=r"model\.denoiser: a new pixart ships with a single text model"):
        check_together(named(made["xl"], made["xl"], "''"))
    folder = copied(made["xl"], tmp_path / "unknown", "model_index.json", _class_name="KolorsPipeline")
    with pytest.raises(LatentflowError, match=r"^encode\.text_encoder: .* is a KolorsPipeline, .* known are Stable"):
        check_together(named(made["xl"], folder, made["xl"]))


def test_clips_are_for_pipelines_that_draw_clips_with_a_vae_of_clips(tmp_path: Path, made: dict[str, Path]) -> None:
    wan = CHECKPOINTS["wan"].write(tmp_path / "wan")
    for frames in (0, 5):
        check_together(clipped(named(wan, wan, wan), frames))
    with pytest.raises(LatentflowError, match=r"^model\.pretrained: a StableDiffusionPipeline draws .* 5x8x8; .*Wan"):
        check_together(clipped(named(made["sd"], made["sd"], made["sd"]), 5))
    with pytest.raises(LatentflowError, match=r"^model\.pretrained: a WanPipeline draws clips, and the autoencoder k"):
        check_together(named(made["sd"], wan, wan))
    led = CHECKPOINTS["wan-from-frame"].write(tmp_path / "led")
    check_together(clipped(named(led, led, led), 5))
    with pytest.raises(LatentflowError, match=r"goes on from the first frame of a clip, and a picture is no clip"):
        check_together(named(led, led, led))
    older = copied(led, tmp_path / "older", "model_index.json", expand_timesteps=False)
    with pytest.raises(LatentflowError, match=r"takes the first frame as channels and by an image encoder, as Wan"):
        check_together(clipped(named(older, older, older), 5))
    both = copied(wan, tmp_path / "both", "model_index.json", boundary_ratio=0.875)
    with pytest.raises(LatentflowError, match=r"^model\.pretrained: .* is one of two, of which transformer_2 draws at"):
        check_together(named(both, both, both))


def clipped(params: Params, frames: int) -> Params:
    return params.model_copy(update={"encode": params.encode.model_copy(update={"clip_frames": frames})})


def copied(pipeline: Path, copy: Path, file: str, **values: object) -> Path:
    shutil.copytree(pipeline, copy)
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | values))
    return copy


def test_pickled_or_damaged_text_models_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made["sd"], folder)
    path = folder / "text_encoder" / WEIGHTS
    weights = load_file(path)
    save_file({name: weights[name] for name in sorted(weights)[1:]}, path, {"format": "pt"})
    with pytest.raises(LatentflowError, match=rf"^encode\.text_encoder: .* missing keys .*{sorted(weights)[0]}"):
        check_together(named(made["sd"], folder, made["sd"]))
    with pytest.raises(LatentflowError, match=rf"^encode\.text_encoder: .* missing keys .*{sorted(weights)[0]}"):
        captions.find(named(folder, folder, folder).encode)  # Which is how the encode step begins.
    save_file(weights | {"more.bias": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(LatentflowError, match=r"^encode\.text_encoder: .* unexpected keys more\.bias"):
        check_together(named(made["sd"], folder, made["sd"]))
    path.unlink()
    torch.save(weights, folder / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(LatentflowError, match=r"^encode\.text_encoder: .*pytorch_model\.bin is a pickle"):
        check_together(named(made["sd"], folder, made["sd"]))
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(LatentflowError, match=r"^encode\.text_encoder: .*text_encoder"):
        captions.find(named(folder, folder, folder).encode)


@pytest.mark.parametrize(
    ("part", "setting"),
    [("vae", "autoencoder.pretrained"), ("text_encoder", "encode.text_encoder"), ("unet", "model.pretrained")],
)
def test_a_pickle_is_refused_in_every_part_with_how_to_convert_it(
    part: str, setting: str, made: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made["sd"], folder)
    (path,) = (folder / part).glob("*.safetensors")
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(LatentflowError) as caught:
        check_together(named(folder, folder, folder))
    assert re.search(rf"(?m)^{setting}: .*{part}/.*\.bin is a pickle.*safe_serialization=True", str(caught.value))


def test_what_the_pipeline_cannot_draw_is_refused(made: dict[str, Path]) -> None:
    flux = (made["flux"],) * 3
    with pytest.raises(LatentflowError, match=r"^evaluate\.sampler heun: a FluxPipeline .* set it to euler"):
        check_together(named(*flux, 0, "evaluate.sampler=heun"))
    with pytest.raises(LatentflowError, match=r"^diffusion: a FluxPipeline .* definition flow with schedule cosine"):
        check_together(named(*flux, 0, "diffusion.schedule=cosine"))
    with pytest.raises(LatentflowError, match=r"^diffusion: a FluxPipeline .* definition edm with schedule linear"):
        check_together(named(*flux, 0, "diffusion.definition=edm"))
    sd3 = (made["sd3"],) * 3
    check_together(named(*sd3, 0, "evaluate.sampler=heun", "diffusion.schedule=cosine"))


def test_all_that_is_wrong_is_told_at_once(made: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(made["sd3"], folder)
    path = folder / "text_encoder" / WEIGHTS
    torch.save(load_file(path), folder / "text_encoder" / "pytorch_model.bin")
    path.unlink()
    params = named(made["sd3"], folder, made["flux"], 0, "autoencoder.resolution=33", "evaluate.sampler=heun")
    told = preflight.faults(params)
    starts = ("autoencoder.resolution 33", "encode.text_encoder: ", "evaluate.sampler heun")
    assert [fault.startswith(start) for fault, start in zip(told, starts, strict=True)] == [True] * 3, told


def test_a_denoiser_with_missing_or_foreign_weights_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made["sd"], folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    first = weights.pop(sorted(weights)[0])
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(LatentflowError, match=r"^model\.pretrained: .*unet is not .* missing keys conv_in\.bias"):
        check_together(named(made["sd"], made["sd"], folder))
    save_file(weights | {"conv_in.bias": first, "more.bias": first.clone()}, path, {"format": "pt"})
    with pytest.raises(LatentflowError, match=r"^model\.pretrained: .*unet is not .* unexpected keys more\.bias"):
        check_together(named(made["sd"], made["sd"], folder))


def test_a_long_caption_is_counted_for_each_text_model(made: dict[str, Path]) -> None:
    source = captions.find(named(made["sd3"], made["sd3"], made["sd3"], tokens=12).encode)
    assert isinstance(source, captions.OfPipeline)
    assert source.lengths == {"text_encoder": 77, "text_encoder_2": 77, "text_encoder_3": 12}
    assert source.cut(["red " * 20, "red"]) == {"text_encoder": 0, "text_encoder_2": 0, "text_encoder_3": 1}
    assert source.cut(["red " * 90]) == {"text_encoder": 1, "text_encoder_2": 1, "text_encoder_3": 1}


def test_what_frames_a_caption_counts_but_for_what_is_left_out(tmp_path: Path) -> None:
    folder = CHECKPOINTS["qwen-image"].write(tmp_path)
    source = captions.find(named(folder, folder, folder, tokens=12).encode)
    assert isinstance(source, captions.OfPipeline)
    # Five tokens follow the caption; 34, which nobody reads, come before it.
    assert source.cut(["x" * 7]) == {"text_encoder": 0}
    assert source.cut(["x" * 8]) == {"text_encoder": 1}


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", "owner/name is gated: accept its terms .* HF_TOKEN"),
        (401, "RepoNotFound", "there is no folder owner/name, and the hub shows no model of that name"),
        (404, "RevisionNotFound", "owner/name has no revision"),
    ],
)
def test_a_hub_that_refuses(
    status: int, code: str, words: str, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        refusing(monkeypatch, tmp_path, status, code),
        pytest.raises(LatentflowError, match=rf"^model\.pretrained: {words}"),
    ):
        check_together(named(made["sd"], made["sd"], "owner/name"))


def test_a_hub_that_cannot_be_reached(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing(monkeypatch, tmp_path, 500, ""):
        pass  # Its port is closed now.
    for setting, params in (
        ("autoencoder.pretrained", named("owner/name", made["sd"], made["sd"])),
        ("encode.text_encoder", named(made["sd"], "owner/name", made["sd"])),
        ("model.pretrained", named(made["sd"], made["sd"], "owner/name")),
    ):
        with pytest.raises(LatentflowError, match=rf"^{setting}: owner/name is no folder here, and the hub cannot be"):
            check_together(params)


def test_of_a_pipeline_on_the_hub_nothing_but_configs_is_downloaded_to_check_it(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(monkeypatch, tmp_path / "cache", made["sd"]) as given:
        check_together(named(REPOSITORY, REPOSITORY, REPOSITORY))
        assert "unet/config.json" in given
        assert not [file for file in given if file.endswith(".safetensors")]
        params = named(REPOSITORY, REPOSITORY, REPOSITORY).model
        begun = denoisers.begin(params)
        assert begun.parent == f"{REPOSITORY}@{SHA}"
        assert "unet/diffusion_pytorch_model.safetensors" in given
    copy_tree_or_file(Path(begun.params.pretrained) / "unet", tmp_path / "unet")
    assert not any(path.is_symlink() for path in (tmp_path / "unet").iterdir())
    assert denoisers.start_digest(begun.params) == {"pretrained": digest_folder(made["sd"] / "unet")}
