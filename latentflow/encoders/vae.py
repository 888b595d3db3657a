"""The data encoder: pictures to latents and back by diffusers' AutoencoderKL, in the denoiser's scale."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from latentflow.devices import seeded_weights
from latentflow.errors import LatentflowError


def build(
    resolution: int, channels: list[int], latent_channels: int, layers_per_block: int, seed: int
) -> AutoencoderKL:
    """A new AutoencoderKL without attention; each level but the last halves the picture."""
    with seeded_weights(seed):
        return AutoencoderKL(
            sample_size=resolution,
            block_out_channels=tuple(channels),
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=_groups(channels),
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )


def _groups(channels: list[int]) -> int:
    """The most normalisation groups, at most 16, that divide every level's width."""
    return max(groups for groups in (1, 2, 4, 8, 16) if all(width % groups == 0 for width in channels))


def load(name: str) -> AutoencoderKL:
    """Loads a frozen VAE from a folder or hub id; weights in safetensors only."""
    try:
        vae = AutoencoderKL.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise LatentflowError(
            f"the VAE {name!r} cannot be loaded as an AutoencoderKL from safetensors: {error}"
        ) from None
    return vae.eval().requires_grad_(False)


def load_from(folder: Path) -> AutoencoderKL:
    """Loads the VAE that the autoencoder step left in its output folder."""
    return load(str(folder / "vae"))


@dataclass(frozen=True)
class LatentShape:
    """``channels`` of the latents, and by what ``factor`` they are smaller than the picture."""

    channels: int
    factor: int


def shape_of(folder: Path) -> LatentShape:
    """The latents' shape of the VAE in the autoencoder step's output folder, from its config alone."""
    config = AutoencoderKL.load_config(folder / "vae")
    return LatentShape(int(config["latent_channels"]), 2 ** (len(config["block_out_channels"]) - 1))


def factor(vae: AutoencoderKL) -> int:
    """How many pixels wide a latent is."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


@torch.no_grad()
def posterior(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (n, 3, h, w) in [-1, 1] to the posterior's mean and log-variance, float32 (n, c, h/f, w/f).

    Both are in the denoiser's scale: shifted and scaled as the VAE says.
    """
    found = vae.encode(pixels).latent_dist
    mean = (found.mode().float() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    return mean, found.logvar.float() + 2 * math.log(vae.config.scaling_factor)


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The posterior's mode of ``posterior``."""
    return posterior(vae, pixels)[0]


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The way back: latents (n, c, h, w) to pixels (n, 3, f·h, f·w), clamped to [-1, 1]."""
    latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    pixels: Tensor = vae.decode(latents).sample
    return pixels.clamp(-1, 1)


@torch.no_grad()
def fold_statistics(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Makes the VAE's latents have zero mean and unit deviation per channel, given those they have now (c,).

    z' = (z - mean) / std is moved into the 1x1 convolutions on both sides of the latents, so that
    ``scaling_factor`` can be 1 and no user needs to know the statistics.
    """
    count = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    # quant_conv's first half of outputs is the mean, its second half the log-variance.
    quant.bias[:count] = (quant.bias[:count] - mean) / std
    quant.weight[:count] /= std.reshape(-1, 1, 1, 1)
    quant.bias[count:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(dim=1)
    post.weight *= std.reshape(1, -1, 1, 1)
