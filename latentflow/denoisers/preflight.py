"""Whether the VAE, the text models and the denoiser that the parameters name belong together, before any is run.

Each step reads its own section, so none of them sees all three; who has them all, such as the command line, asks here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from diffusers import AutoencoderKL
from transformers import AutoConfig

from latentflow.denoisers import starting
from latentflow.denoisers.chosen_diffusion import resolved, to_diffusion
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Captions, Shape
from latentflow.denoisers.led import Images
from latentflow.denoisers.schedulers import check_diffusion, check_sampler
from latentflow.encoders import captions, checkpoint, images, text
from latentflow.encoders.latent_shapes import LatentShape, latent_shape
from latentflow.encoders.vae import SETTING as VAE
from latentflow.errors import LatentflowError
from latentflow.params import AutoencoderParams, EncodeParams, Params

T = TypeVar("T")


def check_together(params: Params) -> None:
    """Raises LatentflowError with a line for each of ``faults``."""
    if found := faults(params):
        raise LatentflowError("\n".join(found))


def faults(params: Params) -> list[str]:
    """All that is wrong, in sentences which name the parameter to change.

    Reads configs and the names of weights; of a pipeline on the hub no more than configs is downloaded.
    """
    found: list[str] = []

    def tried(check: Callable[[], T]) -> T | None:
        try:
            return check()
        except LatentflowError as error:
            found.append(str(error))
            return None

    vae = tried(lambda: _vae(params.autoencoder))
    told = tried(lambda: _captions(params.encode))
    family = tried(lambda: starting.family_for(params.model, weights=False))
    if family:
        tried(lambda: _check_dials(params, family))
        tried(lambda: _check_images(params, family))
    if family and vae:
        tried(lambda: starting.check_vae(params.model, vae))
    if family and vae and told:
        shape = _shape(vae, params)
        tried(lambda: starting.check(params.model, [shape], told, weights=False))
    if family and params.model.pretrained and Path(params.model.pretrained).is_dir():
        # What lies elsewhere is looked at when it is brought here.
        tried(lambda: starting.check_whole(params.model))
    return found


def _check_dials(params: Params, family: Family) -> None:
    """What training and drawing are asked to do, beside what the family's pipeline can do."""
    check_sampler(family, params.evaluate.sampler)
    folder = starting.pretrained(params.model, weights=False).folder if params.model.pretrained else None
    check_diffusion(family, to_diffusion(resolved(params.diffusion, folder)))


def _vae(params: AutoencoderParams) -> LatentShape:
    vae, side = _latents(params), params.resolution
    if side % vae.factor:
        raise LatentflowError(
            f"autoencoder.resolution {side} is not a multiple of {vae.factor}, by which the VAE shrinks pictures."
        )
    return vae


def _shape(vae: LatentShape, params: Params) -> Shape:
    """Of the latents of a square picture, or of a clip where clips are encoded."""
    side, frames = params.autoencoder.resolution // vae.factor, params.encode.clip_frames
    return (vae.channels, *([vae.shortened(frames)] if frames else []), side, side)


def _check_images(params: Params, family: Family) -> None:
    encode = params.encode
    width = images.width(encode.image_encoder) if encode.image_encoder else 0
    found = Images(encode.control_image, _latents(params.autoencoder).factor, width)
    starting.check_images(params.train.adapter, family, found)


def _latents(params: AutoencoderParams) -> LatentShape:
    if not params.pretrained:
        return LatentShape(params.latent_channels, 2 ** (len(params.channels) - 1))
    try:
        if pipeline := checkpoint.find(params.pretrained, VAE, ["vae"], weights=False):
            return latent_shape(pipeline.config("vae"))
        return latent_shape(AutoencoderKL.load_config(params.pretrained))
    except (OSError, ValueError, LatentflowError) as error:
        raise LatentflowError(f"{VAE}: {str(error).removeprefix(f'{VAE}: ')}") from error


def _captions(params: EncodeParams) -> Captions:
    source = captions.find(params, weights=False)
    if isinstance(source, captions.OfPipeline):
        configs = [source.pipeline.config(tower) for tower, _ in source.way.towers]
        width, pooled = source.way.widths(configs)
        return Captions(width, pooled, source.pipeline.kind)
    name = params.text_encoder
    try:
        return Captions(int(AutoConfig.from_pretrained(text.minilm() if name == "minilm" else name).hidden_size))
    except (OSError, ValueError) as error:
        raise LatentflowError(f"encode.text_encoder: {name!r} cannot be read as a text model: {error}") from error
