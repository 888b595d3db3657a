"""What training begins with: a new denoiser of the parameters' sizes, or that of a pipeline, checked beforehand."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open

from latentflow.denoisers.families import DIFFUSION, FAMILIES, LED, OWN, PIPELINES, Denoiser, family_of
from latentflow.denoisers.family import Family, NewFamily
from latentflow.denoisers.intake import Captions, Shape, size, untiled
from latentflow.denoisers.led import Images, LedFamily
from latentflow.devices import seeded_weights
from latentflow.encoders import checkpoint
from latentflow.encoders.checkpoint import Checkpoint, require_whole
from latentflow.encoders.latent_shapes import LatentShape
from latentflow.encoders.readings import WAYS
from latentflow.errors import LatentflowError
from latentflow.files import digest_folder
from latentflow.params import AdapterParams, ModelParams
from latentflow.registry.pulling import pull, pull_pinned

SETTING = "model.pretrained"
WEIGHTS = "diffusion_pytorch_model.safetensors"
log = logging.getLogger(__name__)


class Beginning(NamedTuple):
    """``params`` with a folder as ``pretrained``, and ``parent``: the lasting address of what lies there, or ""."""

    params: ModelParams
    parent: str


def begin(params: ModelParams) -> Beginning:
    """Asks the registry or the hub once what ``model.pretrained`` is now: an alias may move while a training starts.

    Raises LatentflowError where it is nothing that can be had.
    """
    name = params.pretrained
    if not name:
        return Beginning(params, "")
    on_hub = not name.startswith("models:/") and not Path(name).exists()
    if on_hub and (found := checkpoint.find(name, SETTING)):
        # The hub's cache keeps a revision under its hash.
        parent, folder = f"{name.partition('@')[0]}@{found.folder.name}", found.folder
    else:
        try:
            parent, folder, *_ = pull_pinned(name)
        except LatentflowError as error:
            raise LatentflowError(f"{SETTING}: {error}") from error
    return Beginning(params.model_copy(update={"pretrained": str(folder)}), parent)


def check(params: ModelParams, shapes: Sequence[Shape], captions: Captions, weights: bool = True) -> None:
    """Refuses latents of ``shapes`` and captions that the denoiser cannot take.

    Reads configs only, and without ``weights`` needs no others here. Raises LatentflowError that names the parameter.
    """
    if params.pretrained:
        _check_saved(params, shapes, captions, weights)
    else:
        _check_new(params, shapes, captions)


def check_vae(params: ModelParams, vae: LatentShape) -> None:
    """Refuses a VAE of pictures for a denoiser of clips, and one that a class of the user's own cannot be drawn by.

    Raises LatentflowError that names the parameter.
    """
    family = family_for(params, weights=False)
    if family is OWN and (vae.frames or vae.packed):
        raise LatentflowError(
            "autoencoder.pretrained: the pipeline of a denoiser of your own decodes by a VAE of pictures with one "
            "scaling factor, and this one is made for clips or packs its latents; name an AutoencoderKL, "
            "AutoencoderTiny or AutoencoderDC."
        )
    if not vae.frames and family.clips:
        raise LatentflowError(
            f"{SETTING}: a {family.pipeline_class} draws clips, and the autoencoder knows pictures only; name the same "
            "pipeline in autoencoder.pretrained."
        )


def family_for(params: ModelParams, weights: bool = True) -> Family:
    """That of ``model.pretrained``, else the one of new models that ``model.denoiser`` names."""
    return family_of(pretrained(params, weights).folder) if params.pretrained else _new_family(params)


def _check_kind(setting: str, family: Family, shapes: Sequence[Shape]) -> None:
    """Refuses clips for a pipeline of pictures, and pictures for one that goes on from a clip's first frame."""
    if family.led_by_frame and any(len(shape) == 3 for shape in shapes):
        raise LatentflowError(
            f"{setting}: a {family.pipeline_class} goes on from the first frame of a clip, and a picture is no clip; "
            "set encode.clip_frames, and leave pictures out."
        )
    if not family.clips and (clips := next((shape for shape in shapes if len(shape) == 4), None)):
        others = ", ".join(name for name, other in PIPELINES.items() if other.clips)
        raise LatentflowError(
            f"{setting}: a {family.pipeline_class} draws pictures, and encode.clip_frames makes latents of clips, "
            f"{size(clips)}; set it to 0 and encode again, or fine-tune a pipeline that draws clips: {others}."
        )


def _check_new(params: ModelParams, shapes: Sequence[Shape], captions: Captions) -> None:
    name, family = params.denoiser, _new_family(params)
    _check_kind("model.denoiser", family, shapes)
    if captions.pipeline:
        raise LatentflowError(
            f"model.denoiser: a new {name} ships with a single text model, and encode.text_encoder reads captions as a "
            f"{captions.pipeline} does; name a single model there, or the pipeline in model.pretrained."
        )
    if family.fixed_positions and (len(shapes) > 1 or shapes[0][1] != shapes[0][2]):
        raise LatentflowError(
            f"model.denoiser: {name} trains on pictures of one size, a square, and the encoded set has latents of "
            f"{', '.join(size(shape) for shape in shapes)}; choose pixart or unet, or set encode.bucket_step to 0."
        )
    patch = family.patch_size(params)
    if bad := untiled(shapes, patch):
        raise LatentflowError(
            f"model.{name}.patch_size {patch} does not divide latents of {bad}; raise encode.bucket_step or choose "
            "another patch size."
        )
    family.check_new(params, shapes, captions.width)


def _new_family(params: ModelParams) -> NewFamily:
    return OWN if ":" in params.denoiser else FAMILIES[params.denoiser]


def own_class(params: ModelParams) -> str:
    """The class of the user's own that would be trained, as ``module:Class``, or ""."""
    if not params.pretrained:
        return params.denoiser if ":" in params.denoiser else ""
    pipeline = pretrained(params)
    return str(pipeline.config(OWN.subfolder)["own_class"]) if family_of(pipeline.folder) is OWN else ""


def _check_saved(params: ModelParams, shapes: Sequence[Shape], captions: Captions, weights: bool) -> None:
    pipeline = pretrained(params, weights)
    family = family_of(pipeline.folder)
    folder = _weights(pipeline, family) if weights else pipeline.folder / family.subfolder
    _check_kind(SETTING, family, shapes)
    if captions.pipeline != family.pipeline_class and (captions.pipeline or not isinstance(family, NewFamily)):
        way = f"as a {captions.pipeline} does" if captions.pipeline else "with a single model"
        raise LatentflowError(
            f"{SETTING}: {pipeline.folder} is a {family.pipeline_class}, and encode.text_encoder reads captions {way}; "
            "name the same pipeline in both, and encode again."
        )
    if weights and captions.pipeline and captions.models != pipeline.digest(WAYS[captions.pipeline].parts):
        raise LatentflowError(
            f"model.pretrained: the text models of {pipeline.folder}, with which the finished pipeline would draw, are "
            "not those that encoded the captions; name the same pipeline in encode.text_encoder, and encode again."
        )
    try:
        family.refuse(pipeline.index)
        misfit = family.intake(pipeline.config(family.subfolder)).misfit(shapes, captions)
    except KeyError as error:
        misfit = f"lacks {error} in its config.json"
    except ValueError as error:
        misfit = f"cannot be used ({error})" if family is OWN else str(error)
    if misfit:
        raise LatentflowError(f"model.pretrained: the denoiser in {folder} {misfit}.")
    family.check_saved(pipeline.config(family.subfolder), shapes)


def pretrained(params: ModelParams, weights: bool = True) -> Checkpoint:
    """The pipeline that ``model.pretrained`` names; see ``find_pipeline``."""
    return find_pipeline(params.pretrained, weights)


def find_pipeline(name: str, weights: bool = True) -> Checkpoint:
    """The pipeline of a folder, an address in the registry, or an id of the hub, with its revision or without.

    Raises LatentflowError where it is none of a known family.
    """
    on_hub = not name.startswith("models:/") and not Path(name).exists()
    found = checkpoint.find(name, SETTING, weights=weights) if on_hub else None
    try:
        found = found or checkpoint.find(str(pull(name)), SETTING)
        assert found
        if isinstance(family_of(found.folder), LedFamily):
            raise LatentflowError(
                f"{found.folder} is led by images, and what is trained further is a pipeline without them; name the "
                "one that it was made from."
            )
    except LatentflowError as error:
        raise LatentflowError(f"{SETTING}: {str(error).removeprefix(f'{SETTING}: ')}") from error
    return found


def _weights(pipeline: Checkpoint, family: Family) -> Path:
    """The folder of the denoiser. Raises LatentflowError where its weights are not there in safetensors."""
    folder = pipeline.folder / family.subfolder
    if not any((folder / f"{WEIGHTS}{ending}").is_file() for ending in ("", ".index.json")):
        checkpoint.require_safetensors(folder, SETTING)
        raise LatentflowError(
            f"{SETTING}: {folder} holds no {WEIGHTS}; save the pipeline with save_pretrained(folder) and no variant."
        )
    return folder


def check_images(adapter: AdapterParams, family: Family, images: Images) -> None:
    """Refuses an adapter by images for which the family or the encoded images are not made.

    Raises LatentflowError that names the parameter.
    """
    if not adapter.by_images:
        return
    led_family(adapter, family)
    if adapter.kind == "controlnet" and not images.control:
        raise LatentflowError(
            "train.adapter.kind controlnet learns from control pictures, and there are none; set encode.control_image "
            "to edges or column:NAME, and encode."
        )
    if adapter.kind == "controlnet" and images.factor & (images.factor - 1):
        raise LatentflowError(
            f"train.adapter.kind controlnet: the VAE shrinks pictures by {images.factor}, and a ControlNet can only "
            "halve them."
        )
    if adapter.kind == "ip_adapter" and not images.width:
        raise LatentflowError(
            "train.adapter.kind ip_adapter learns from embeddings of reference images, and there are none; set "
            "encode.reference_image and encode.image_encoder, and encode."
        )


def led_family(adapter: AdapterParams, family: Family) -> LedFamily:
    """What the family becomes with an adapter by images. Raises LatentflowError where there is none for it."""
    known = LED[adapter.kind]
    if family.pipeline_class not in known:
        raise LatentflowError(
            f"train.adapter.kind {adapter.kind} is for {', '.join(known)}, and model.pretrained is a "
            f"{family.pipeline_class}; choose lora, or another checkpoint."
        )
    return known[family.pipeline_class]


def lead(denoiser: Denoiser, adapter: AdapterParams, images: Images, seed: int) -> Denoiser:
    """The denoiser with what the adapter learns by images beside it; without such an adapter itself."""
    if not adapter.by_images:
        return denoiser
    family = led_family(adapter, denoiser.family)
    return replace(denoiser, family=family, model=family.join(denoiser.model, images, seed))


def warn_of_other_definition(params: ModelParams, definition: str) -> None:
    """Says so where the pipeline of ``model.pretrained`` was trained with another definition than ``definition``."""
    if params.pretrained and (before := _definition(pretrained(params).folder)) not in ("", definition):
        log.warning(
            "model.pretrained was trained with definition %s, and diffusion.definition is %s: all weights can learn "
            "the other one, an adapter hardly",
            before,
            definition,
        )


def _definition(pipeline: Path) -> str:
    """The definition that a pipeline was trained with, ours or as its scheduler tells; "" where neither does."""
    if (path := pipeline / DIFFUSION).is_file():
        return str(json.loads(path.read_text(encoding="utf-8"))["definition"])
    if not (path := pipeline / "scheduler" / "scheduler_config.json").is_file():
        return ""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["_class_name"].startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
        return "flow"
    return f"ddpm_{config['prediction_type']}" if "prediction_type" in config else ""


def start_digest(params: ModelParams) -> dict[str, str]:
    """{"pretrained": the content digest of the denoiser that training starts from}; empty for random weights."""
    if not params.pretrained:
        return {}
    return {"pretrained": digest_folder(_weights(pretrained(params), family_for(params)))}


def build(params: ModelParams, latent_shape: list[int], text_width: int, seed: int) -> ModelMixin:
    """A new denoiser with weights drawn from ``seed``. Raises LatentflowError where sizes do not fit."""
    name, family = params.denoiser, _new_family(params)
    _check_new(params, [latent_shape], Captions(text_width))
    try:
        with seeded_weights(seed):
            model = family.build(params, latent_shape, text_width)
    except ValueError as error:
        raise LatentflowError(f"model.{name} does not fit latents of shape {tuple(latent_shape)}: {error}") from None
    return model.to(memory_format=family.memory_format)


def start(params: ModelParams, latent_shape: list[int], captions: Captions, seed: int) -> ModelMixin:
    """The denoiser that training begins with, in fp32: a new one, or that of ``model.pretrained``."""
    if not params.pretrained:
        return build(params, latent_shape, captions.width, seed)
    check(params, [latent_shape], captions)
    family = family_for(params)
    model = _load_whole(family, _weights(pretrained(params), family))
    return model.train().requires_grad_(True).to(memory_format=family.memory_format)


def check_whole(params: ModelParams) -> None:
    """Raises LatentflowError unless the weights of ``model.pretrained`` are those of its config; none are read."""
    pipeline, family = pretrained(params), family_for(params)
    folder = _weights(pipeline, family)
    try:
        with torch.device("meta"):
            wanted = set(family.kind.from_config(pipeline.config(family.subfolder)).state_dict())
        found: set[str] = set()
        for path in folder.glob(f"{WEIGHTS.removesuffix('.safetensors')}*.safetensors"):
            with safe_open(path, framework="pt") as file:
                found.update(file.keys())
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise LatentflowError(f"{SETTING}: {folder} cannot be read: {error}") from error
    keys = {"missing_keys": sorted(wanted - found), "unexpected_keys": sorted(found - wanted), "mismatched_keys": []}
    require_whole(keys, f"{SETTING}: {folder}")


def _load_whole(family: Family, folder: Path) -> ModelMixin:
    """A saved model. Raises LatentflowError unless the file holds exactly the weights of the config."""
    try:
        model, report = family.kind.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LatentflowError(f"model.pretrained: {folder} cannot be loaded: {error}") from error
    require_whole(report, f"model.pretrained: {folder}")
    return model
