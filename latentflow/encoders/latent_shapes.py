"""How large the latents of a VAE are, by its class and config alone, before any weights are loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latentflow.errors import LatentflowError

Config = Mapping[str, Any]
FLUX_2, FLUX_2_PATCH = "AutoencoderKLFlux2", 2


@dataclass(frozen=True)
class LatentShape:
    """``channels`` of the latents, and by what ``factor`` they are smaller than the picture.

    ``frames``: how many frames of a clip become one, after the first; 0 where the VAE knows pictures only. ``packed``:
    whether patches of what the VAE makes are channels of the latents.
    """

    channels: int
    factor: int
    frames: int = 0
    packed: bool = False

    def shortened(self, frames: int) -> int:
        """How many frames the latents of a clip of so many have."""
        return (frames - 1) // self.frames + 1 if self.frames else frames

    def lengthened(self, frames: int) -> int:
        """How many frames the clip has, of latents of so many."""
        return (frames - 1) * self.frames + 1 if self.frames else frames


def _kl(config: Config) -> LatentShape:
    return LatentShape(config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1))


def _flux_2(config: Config) -> LatentShape:
    """Its patches of 2x2 are channels of the latents."""
    whole = _kl(config)
    return LatentShape(whole.channels * FLUX_2_PATCH**2, whole.factor * FLUX_2_PATCH, packed=True)


def _by_encoder(config: Config) -> LatentShape:
    return LatentShape(config["latent_channels"], 2 ** (len(config["encoder_block_out_channels"]) - 1))


def _wan(config: Config) -> LatentShape:
    return LatentShape(config["z_dim"], config["scale_factor_spatial"], config["scale_factor_temporal"])


def _qwen(config: Config) -> LatentShape:
    halved = config["temperal_downsample"]
    return LatentShape(config["z_dim"], 2 ** len(halved), 2 ** sum(halved))


def _ltx(config: Config) -> LatentShape:
    halved = 2 ** sum(config["spatio_temporal_scaling"])
    return LatentShape(config["latent_channels"], config["patch_size"] * halved, config["patch_size_t"] * halved)


def _cogvideox(config: Config) -> LatentShape:
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return LatentShape(config["latent_channels"], factor, int(config["temporal_compression_ratio"]))


VAES: dict[str, Callable[[Config], LatentShape]] = {
    "AutoencoderKL": _kl,
    FLUX_2: _flux_2,
    "AutoencoderTiny": _by_encoder,
    "AutoencoderDC": _by_encoder,
    "AutoencoderKLQwenImage": _qwen,
    "AutoencoderKLWan": _wan,
    "AutoencoderKLLTXVideo": _ltx,
    "AutoencoderKLCogVideoX": _cogvideox,
}
"""The classes of diffusers that are known here."""


def latent_shape(config: Config) -> LatentShape:
    """Of a VAE's config.json. Raises LatentflowError for a class that is not known here."""
    name = config.get("_class_name", "")
    if name not in VAES:
        raise LatentflowError(f"the VAE is a {name or 'model of no class'}, not one of {', '.join(VAES)}.")
    return VAES[name](config)
