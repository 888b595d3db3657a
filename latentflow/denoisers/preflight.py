"""Whether the VAE, the text models and the denoiser that the parameters name belong together, before any is run.

Each step reads its own section, so none of them sees all three; who has them all, such as the command line, asks here.
"""

from pathlib import Path

from diffusers import AutoencoderKL
from transformers import AutoConfig

from latentflow.denoisers import starting
from latentflow.denoisers.intake import Captions, Shape
from latentflow.denoisers.trained_with import trained_with
from latentflow.encoders import captions, checkpoint, text
from latentflow.encoders.latent_shapes import LatentShape, latent_shape
from latentflow.encoders.vae import SETTING as VAE
from latentflow.errors import LatentflowError
from latentflow.params import AutoencoderParams, EncodeParams, Params


def check_together(params: Params) -> None:
    """Reads configs and the names of weights; of a pipeline on the hub no more than configs is downloaded.

    Raises LatentflowError that names the parameter to change.
    """
    vae, side = _latents(params.autoencoder), params.autoencoder.resolution
    if side % vae.factor:
        raise LatentflowError(
            f"autoencoder.resolution {side} is not a multiple of {vae.factor}, by which the VAE shrinks pictures."
        )
    frames = params.encode.clip_frames
    time = [vae.shortened(frames)] if frames else []
    shape: Shape = (vae.channels, *time, side // vae.factor, side // vae.factor)
    starting.check(params.model, [shape], _captions(params.encode), weights=False)
    starting.check_vae(params.model, vae)
    if params.model.pretrained and "auto" in (params.diffusion.definition, params.diffusion.schedule):
        trained_with(starting.pretrained(params.model, weights=False).folder)
    if Path(params.model.pretrained).is_dir():  # What lies elsewhere is looked at when it is brought here.
        starting.check_whole(params.model)


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
