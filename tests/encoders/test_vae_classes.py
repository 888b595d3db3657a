"""Every class of VAE: the latents' shape told from its config, its own scale and shift, there and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file, save_file

from latentflow.encoders import vae as vae_room
from latentflow.encoders.latent_shapes import LatentShape, latent_shape
from latentflow.errors import LatentflowError

WIDE = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
KL = WIDE | {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
WAN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "latents_mean": [0.5, -1.0, 0.0, 2.0]}
WAN |= {"latents_std": [2.0, 1.0, 0.5, 3.0]}
TINY = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 4}
TINY |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
DC = {"latent_channels": 4, "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
DC |= {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1), "scaling_factor": 0.41407}
DC |= {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock", "attention_head_dim": 4}


LTX = {"latent_channels": 4, "block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "patch_size": 1}
LTX |= {"spatio_temporal_scaling": (True, False), "decoder_spatio_temporal_scaling": (True, False)}
LTX |= {"layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1), "scaling_factor": 0.5}
COG = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "layers_per_block": 1}
COG |= {"down_block_types": ("CogVideoXDownBlock3D",) * 2, "up_block_types": ("CogVideoXUpBlock3D",) * 2}
COG |= {"temporal_compression_ratio": 2}


def scaled(latents: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """As Wan's and Qwen-Image's pipelines do."""
    shape = (1, 4, 1, 1, 1)
    return (latents - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


CASES: dict[str, tuple[str, dict[str, Any], LatentShape, Callable[[Any], torch.Tensor]]] = {
    "SD": ("AutoencoderKL", KL | {"scaling_factor": 0.18215}, LatentShape(4, 2), lambda z: z * 0.18215),
    "FLUX": (
        "AutoencoderKL",
        KL | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        LatentShape(4, 2),
        lambda z: (z - 0.1159) * 0.3611,
    ),
    "tiny": ("AutoencoderTiny", TINY, LatentShape(4, 2), lambda z: z),
    "DC": ("AutoencoderDC", DC, LatentShape(4, 2), lambda z: z * 0.41407),
    "Wan": (
        "AutoencoderKLWan",
        WAN | {"temperal_downsample": [False], "scale_factor_spatial": 2, "scale_factor_temporal": 1},
        LatentShape(4, 2, 1),
        lambda z: scaled(z, WAN["latents_mean"], WAN["latents_std"]),
    ),
    "Qwen-Image": (
        "AutoencoderKLQwenImage",
        WAN | {"temperal_downsample": [True]},
        LatentShape(4, 2, 2),
        lambda z: scaled(z, WAN["latents_mean"], WAN["latents_std"]),
    ),
    "LTX": ("AutoencoderKLLTXVideo", LTX, LatentShape(4, 2, 2), lambda z: z * 0.5),
    "LTX 0.9.1": (
        "AutoencoderKLLTXVideo",
        LTX | {"timestep_conditioning": True},
        LatentShape(4, 2, 2),
        lambda z: z * 0.5,
    ),
    "CogVideoX": ("AutoencoderKLCogVideoX", COG, LatentShape(4, 2, 2), lambda z: z * 1.15258426),
}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    kind, config, *_ = CASES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(diffusers, kind)(**config).save_pretrained(tmp_path / "vae")
    return tmp_path, request.param


@torch.no_grad()
def raw(vae: ModelMixin, pixels: torch.Tensor) -> torch.Tensor:
    """What the class itself gives, before any scale."""
    found = vae.encode(pixels)
    for name in ("latent_dist", "latents", "latent"):
        if name in found:
            return found[name].mode() if name == "latent_dist" else found[name]
    raise AssertionError(found)


def no_noise_left(vae: ModelMixin) -> list[torch.Tensor]:
    """What LTX-Video's later VAEs are told besides."""
    return [torch.zeros(2)] if vae.config.get("timestep_conditioning") else []


def test_latents_are_in_the_denoisers_scale_and_come_back(case: tuple[Path, str]) -> None:
    folder, name = case
    _, _, shape, scale = CASES[name]
    assert vae_room.shape_of(folder) == shape
    vae = vae_room.load_from(folder)
    pixels = torch.rand((2, 3, 8, 12), generator=torch.Generator().manual_seed(1)) * 2 - 1
    clip = pixels.unsqueeze(2) if shape.frames else pixels
    latents, logvar = vae_room.posterior(vae, pixels)
    assert latents.shape == (2, 4, 4, 6)
    wanted = scale(raw(vae, clip))
    torch.testing.assert_close(latents.unsqueeze(2) if shape.frames else latents, wanted)
    assert (logvar is None) == (name in ("tiny", "DC"))
    with torch.no_grad():
        decoded = vae.decode(raw(vae, clip), *no_noise_left(vae)).sample.clamp(-1, 1)
    torch.testing.assert_close(
        vae_room.decode(vae, latents), decoded.squeeze(2) if shape.frames else decoded, atol=1e-5, rtol=1e-4
    )


def test_clips_are_encoded_as_a_whole_or_frame_by_frame_and_come_back(case: tuple[Path, str]) -> None:
    folder, name = case
    _, _, shape, scale = CASES[name]
    vae = vae_room.load_from(folder)
    pixels = torch.rand((2, 3, 5, 8, 12), generator=torch.Generator().manual_seed(1)) * 2 - 1
    if not shape.frames:
        latents = vae_room.encode(vae, pixels.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 5)).transpose(1, 2)
        decoded = vae_room.decode(vae, latents)
        assert decoded.shape == pixels.shape
        torch.testing.assert_close(decoded[:, :, 3], vae_room.decode(vae, latents[:, :, 3]), atol=1e-5, rtol=1e-4)
        return
    latents = vae_room.encode(vae, pixels)
    assert latents.shape == (2, 4, shape.shortened(5), 4, 6)
    assert shape.lengthened(shape.shortened(5)) == 5
    torch.testing.assert_close(latents, scale(raw(vae, pixels)))
    with torch.no_grad():
        decoded = vae.decode(raw(vae, pixels), *no_noise_left(vae)).sample.clamp(-1, 1)
    torch.testing.assert_close(vae_room.decode(vae, latents), decoded, atol=1e-5, rtol=1e-4)
    if name != "CogVideoX":  # Its norms see all frames.
        torch.testing.assert_close(latents[:, :, 0], vae_room.encode(vae, pixels[:, :, 0]), atol=1e-5, rtol=1e-4)


def test_the_latents_of_flux_2_are_packed_and_whitened_as_its_pipeline_does(tmp_path: Path) -> None:
    vae = diffusers.AutoencoderKLFlux2(**KL)
    vae.bn.running_mean.copy_(0.1 * torch.arange(16))
    vae.bn.running_var.copy_(1 + 0.2 * torch.arange(16))
    vae.save_pretrained(tmp_path / "vae")
    assert vae_room.shape_of(tmp_path) == LatentShape(16, 4, packed=True)
    loaded = vae_room.load_from(tmp_path)
    pixels = torch.rand((2, 3, 8, 12), generator=torch.Generator().manual_seed(1)) * 2 - 1
    pipeline = diffusers.Flux2KleinPipeline(None, vae.eval(), None, None, None)
    with torch.no_grad():
        wanted = pipeline._encode_vae_image(pixels, torch.Generator())
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    latents, logvar = vae_room.posterior(loaded, pixels)
    torch.testing.assert_close(latents, wanted)
    assert logvar is not None
    assert logvar.shape == latents.shape == (2, 16, 2, 3)
    torch.testing.assert_close(vae_room.decode(loaded, latents), decoded, atol=1e-5, rtol=1e-4)


def test_an_unknown_class_is_refused_with_what_is_known() -> None:
    with pytest.raises(LatentflowError, match="the VAE is a VQModel, not one of AutoencoderKL, AutoencoderKLFlux2"):
        latent_shape({"_class_name": "VQModel"})


def test_a_vae_that_is_not_whole_or_pickled_is_refused(tmp_path: Path) -> None:
    vae = diffusers.AutoencoderKL(**KL)
    vae.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    first = sorted(weights)[0]
    save_file({name: weights[name] for name in sorted(weights)[1:]}, path, {"format": "pt"})
    with pytest.raises(LatentflowError, match=rf"^autoencoder\.pretrained: the VAE .* missing keys {first}"):
        vae_room.load(str(tmp_path))
    path.unlink()
    torch.save(weights, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(LatentflowError, match=r"^autoencoder\.pretrained: .*\.bin is a pickle.*safe_serialization"):
        vae_room.load(str(tmp_path))
