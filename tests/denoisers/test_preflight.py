"""Parts that do not belong together, or cannot be had, are refused in a sentence before anything is encoded."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from checkpoints import CHECKPOINTS, SIDE
from encoding import PARAMS, build_text_encoder
from safetensors.torch import load_file, save_file

from latentflow.denoisers.preflight import check_together
from latentflow.encoders import captions
from latentflow.errors import LatentflowError
from latentflow.params import Params, load

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("made")
    some = {"sd": "stable-diffusion-1.5", "xl": "stable-diffusion-xl", "sd3": "stable-diffusion-3"}
    folders = {short: CHECKPOINTS[name].write(root / short) for short, name in some.items()}
    return folders | {"bert": build_text_encoder(root / "bert")}


def named(vae: Path | str, text: Path | str, model: Path | str, tokens: int = 0) -> Params:
    return load(
        PARAMS,
        [
            f"autoencoder.pretrained={vae}",
            f"autoencoder.resolution={SIDE}",
            f"encode.text_encoder={text}",
            f"encode.max_tokens={tokens}",
            f"model.pretrained={model}",
        ],
    )


@pytest.mark.parametrize(
    ("vae", "text", "model", "tokens"),
    [("sd", "sd", "sd", 0), ("xl", "xl", "xl", 77), ("sd3", "sd3", "sd3", 0), ("xl", "bert", "sd", 12)],
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
        captions.find(named(folder, folder, folder).encode).load()
    path.unlink()
    torch.save(weights, folder / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(LatentflowError, match=r"^encode\.text_encoder: .*pytorch_model\.bin is a pickle"):
        check_together(named(made["sd"], folder, made["sd"]))
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(LatentflowError, match=r"^encode\.text_encoder: .*text_encoder"):
        captions.find(named(folder, folder, folder).encode).load()


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


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path, status: int, code: str) -> Iterator[None]:
    """A hub that answers every request so."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


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
        hub(monkeypatch, tmp_path, status, code),
        pytest.raises(LatentflowError, match=rf"^model\.pretrained: {words}"),
    ):
        check_together(named(made["sd"], made["sd"], "owner/name"))


def test_a_hub_that_cannot_be_reached(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(monkeypatch, tmp_path, 500, ""):
        pass  # Its port is closed now.
    for setting, params in (
        ("autoencoder.pretrained", named("owner/name", made["sd"], made["sd"])),
        ("encode.text_encoder", named(made["sd"], "owner/name", made["sd"])),
        ("model.pretrained", named(made["sd"], made["sd"], "owner/name")),
    ):
        with pytest.raises(LatentflowError, match=rf"^{setting}: owner/name is no folder here, and the hub cannot be"):
            check_together(params)
