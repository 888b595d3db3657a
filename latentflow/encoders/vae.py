"""The data encoder: pictures to latents and back by diffusers' VAEs, in the denoiser's scale."""

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ModelMixin
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from latentflow.devices import seeded_weights
from latentflow.encoders import checkpoint
from latentflow.encoders.checkpoint import require_whole
from latentflow.encoders.latent_shapes import FLUX_2, FLUX_2_PATCH, LatentShape, latent_shape
from latentflow.errors import LatentflowError

SETTING = "autoencoder.pretrained"


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


def load(name: str) -> ModelMixin:
    """Loads a frozen VAE, that of a pipeline or one by itself, from a folder or hub id; in fp32, safetensors only.

    Raises LatentflowError where it is of no class that is known here, or not whole.
    """
    if pipeline := checkpoint.find(name, SETTING, ["vae"]):
        if "vae" not in pipeline.parts:
            raise LatentflowError(f"{SETTING}: {name} is a {pipeline.kind} without a VAE; name the folder of one.")
        return _load(pipeline.folder / "vae")
    if Path(name).is_dir():
        checkpoint.require_safetensors(Path(name), SETTING)
    return _load(name)


def _load(source: Path | str) -> ModelMixin:
    import diffusers

    try:
        config = AutoencoderKL.load_config(source)
        latent_shape(config)
        kind = getattr(diffusers, config["_class_name"])
        vae, report = kind.from_pretrained(
            source, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, LatentflowError) as error:
        raise LatentflowError(f"{SETTING}: the VAE {str(source)!r} cannot be loaded: {error}") from None
    require_whole(report, f"{SETTING}: the VAE {str(source)!r}")
    return vae.eval().requires_grad_(False)


def load_from(folder: Path) -> ModelMixin:
    """Loads the VAE that the autoencoder step left in its output folder."""
    return _load(folder / "vae")


def shape_of(folder: Path) -> LatentShape:
    """The latents' shape of the VAE in the autoencoder step's output folder, from its config alone."""
    return latent_shape(AutoencoderKL.load_config(folder / "vae"))


def class_of(folder: Path) -> str:
    """The class of the VAE in the autoencoder step's output folder."""
    return str(AutoencoderKL.load_config(folder / "vae")["_class_name"])


def factor(vae: ModelMixin) -> int:
    """How many pixels wide a latent is."""
    return _shape(vae).factor


def knows_clips(vae: ModelMixin) -> bool:
    """Whether it takes a clip as a whole, not only pictures."""
    return _shape(vae).frames > 0


def _shape(vae: ModelMixin) -> LatentShape:
    return latent_shape({**vae.config, "_class_name": type(vae).__name__})


@torch.no_grad()
def posterior(vae: ModelMixin, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Pixels (n, 3, h, w) in [-1, 1] to the posterior's mean and log-variance, float32 (n, c, h/f, w/f).

    Both are in the denoiser's scale: shifted and scaled as the VAE says. A VAE without a distribution gives None.
    A video VAE also takes clips (n, 3, frames, h, w), and a picture as a clip of one frame.
    """
    alone = pixels.ndim == 4 and knows_clips(vae)
    found = vae.encode(pixels.unsqueeze(2) if alone else pixels)
    shift, scale = _scale(vae, pixels.ndim + alone)
    if "latent_dist" not in found:
        latents = found.latent if "latent" in found else found.latents
        return (latents.float() - shift) * scale, None
    mean, logvar = found.latent_dist.mode().float(), found.latent_dist.logvar.float()
    if _packs(vae):
        mean, logvar = (F.pixel_unshuffle(part, FLUX_2_PATCH) for part in (mean, logvar))
    mean, logvar = (mean - shift) * scale, logvar + 2 * (scale.log() if isinstance(scale, Tensor) else math.log(scale))
    return (mean.squeeze(2), logvar.squeeze(2)) if alone else (mean, logvar)


def encode(vae: ModelMixin, pixels: Tensor) -> Tensor:
    """The posterior's mode of ``posterior``."""
    return posterior(vae, pixels)[0]


@torch.no_grad()
def decode(vae: ModelMixin, latents: Tensor) -> Tensor:
    """The way back: latents (n, c, h, w) to pixels (n, 3, f·h, f·w), clamped to [-1, 1]; clips likewise."""
    if latents.ndim == 5 and not knows_clips(vae):
        frames: Tensor = decode(vae, latents.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(latents), -1))
        return frames.transpose(1, 2)
    alone = latents.ndim == 4 and knows_clips(vae)
    shift, scale = _scale(vae, latents.ndim + alone)
    latents = (latents.unsqueeze(2) if alone else latents) / scale + shift
    # Some of LTX-Video's take out the last noise themselves, and are told that there is none, as its pipeline does.
    told = [latents.new_zeros(len(latents))] if vae.config.get("timestep_conditioning") else []
    pixels: Tensor = vae.decode(F.pixel_shuffle(latents, FLUX_2_PATCH) if _packs(vae) else latents, *told).sample
    return (pixels.squeeze(2) if alone else pixels).clamp(-1, 1)


def _packs(vae: ModelMixin) -> bool:
    """Whether its pipelines make channels of patches of its latents, and scale them by a batch norm's statistics."""
    return type(vae).__name__ == FLUX_2


def _scale(vae: ModelMixin, dimensions: int) -> tuple[Tensor | float, Tensor | float]:
    """(shift, scale) with which latents become (latents - shift)·scale: numbers, or per channel to broadcast."""
    config, scale = vae.config, vae.config.get("scaling_factor")
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if _packs(vae):
        mean, std = vae.bn.running_mean, (vae.bn.running_var + vae.bn.eps).sqrt()
    beside_weights = dict(vae.named_buffers(recurse=False))
    if "latents_mean" in beside_weights:  # LTX-Video's place for them.
        mean, std = beside_weights["latents_mean"], beside_weights["latents_std"]
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, 1.0 if scale is None else scale
    shape = (1, -1, *(1,) * (dimensions - 2))
    mean, std = (torch.as_tensor(values, dtype=torch.float32).to(vae.device).reshape(shape) for values in (mean, std))
    return mean, (1.0 if scale is None else scale) / std


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
