"""What training begins with: a new denoiser of the parameters' sizes, or that of a pipeline, checked beforehand."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError

from latentflow.denoisers.families import DIFFUSION, FAMILIES, Family, family_of, model_class
from latentflow.denoisers.intake import Shape, size, untiled
from latentflow.devices import seeded_weights
from latentflow.errors import LatentflowError
from latentflow.files import digest_folder
from latentflow.params import ModelParams
from latentflow.registry.pulling import pull, pull_pinned

WEIGHTS = "diffusion_pytorch_model.safetensors"
log = logging.getLogger(__name__)


class Beginning(NamedTuple):
    """``params`` with a folder as ``pretrained``, and ``parent``: the lasting address of what lies there, or ""."""

    params: ModelParams
    parent: str


def begin(params: ModelParams) -> Beginning:
    """Asks the registry once what ``model.pretrained`` is now: an alias may move while a training starts.

    Raises LatentflowError where it is nothing that can be had.
    """
    if not params.pretrained:
        return Beginning(params, "")
    try:
        parent, folder, *_ = pull_pinned(params.pretrained)
    except LatentflowError as error:
        raise LatentflowError(f"model.pretrained: {error}") from error
    return Beginning(params.model_copy(update={"pretrained": str(folder)}), parent)


def check(params: ModelParams, shapes: Sequence[Shape], text_width: int) -> None:
    """Refuses latents of ``shapes`` and captions of ``text_width`` that the denoiser cannot take.

    Reads configs only. Raises LatentflowError that names the parameter.
    """
    if any(len(shape) != 3 for shape in shapes):
        raise LatentflowError(
            "the encoded set holds clips, and no denoiser here trains on clips yet; set encode.clip_frames to 0 and "
            "encode again."
        )
    if params.pretrained:
        _check_saved(params, shapes, text_width)
    else:
        _check_new(params, shapes)


def _check_new(params: ModelParams, shapes: Sequence[Shape]) -> None:
    name, family = params.denoiser, FAMILIES[params.denoiser]
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


def _check_saved(params: ModelParams, shapes: Sequence[Shape], text_width: int) -> None:
    folder = pretrained_folder(params)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        misfit = FAMILIES[params.denoiser].intake(config).misfit(shapes, text_width)
    except KeyError as error:
        misfit = f"lacks {error} in its config.json"
    except (OSError, ValueError) as error:
        misfit = str(error)
    if misfit:
        raise LatentflowError(f"model.pretrained: the denoiser in {folder} {misfit}.")


def pretrained_folder(params: ModelParams) -> Path:
    """The folder of the denoiser that ``model.pretrained`` names, downloaded where it is in the registry.

    Raises LatentflowError where it is no pipeline of the family of ``model.denoiser`` in safetensors.
    """
    family = FAMILIES[params.denoiser]
    try:
        pipeline = pull(params.pretrained)
        found = family_of(pipeline)
    except LatentflowError as error:
        raise LatentflowError(f"model.pretrained: {error}") from error
    if found is not family:
        name = next(name for name, one in FAMILIES.items() if one is found)
        raise LatentflowError(
            f"model.pretrained: {pipeline} is a {found.pipeline_class}, whose denoiser is a {name}, and model.denoiser "
            f"is {params.denoiser}; set model.denoiser to {name}."
        )
    folder = pipeline / family.subfolder
    if not any((folder / f"{WEIGHTS}{ending}").is_file() for ending in ("", ".index.json")):
        raise LatentflowError(
            f"model.pretrained: {folder} holds no {WEIGHTS}; only safetensors are loaded: save the pipeline with "
            "save_pretrained(folder, safe_serialization=True) and no variant."
        )
    return folder


def warn_of_other_definition(params: ModelParams, definition: str) -> None:
    """Says so where the pipeline of ``model.pretrained`` was trained with another definition than ``definition``."""
    if params.pretrained and (before := _definition(pretrained_folder(params).parent)) not in ("", definition):
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
    return {"pretrained": digest_folder(pretrained_folder(params))} if params.pretrained else {}


def build(params: ModelParams, latent_shape: list[int], text_width: int, seed: int) -> ModelMixin:
    """A new denoiser with weights drawn from ``seed``. Raises LatentflowError where sizes do not fit."""
    name = params.denoiser
    _check_new(params, [latent_shape])
    try:
        with seeded_weights(seed):
            model = FAMILIES[name].build(params, latent_shape, text_width)
    except ValueError as error:
        raise LatentflowError(f"model.{name} does not fit latents of shape {tuple(latent_shape)}: {error}") from None
    return model.to(memory_format=FAMILIES[name].memory_format)


def start(params: ModelParams, latent_shape: list[int], text_width: int, seed: int) -> ModelMixin:
    """The denoiser that training begins with, in fp32: a new one, or that of ``model.pretrained``."""
    if not params.pretrained:
        return build(params, latent_shape, text_width, seed)
    check(params, [latent_shape], text_width)
    family = FAMILIES[params.denoiser]
    model = _load_whole(family, pretrained_folder(params))
    return model.train().requires_grad_(True).to(memory_format=family.memory_format)


def _load_whole(family: Family, folder: Path) -> ModelMixin:
    """A saved model. Raises LatentflowError unless the file holds exactly the weights of the config."""
    try:
        model, report = model_class(family).from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LatentflowError(f"model.pretrained: {folder} cannot be loaded: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := report[kind]:
            raise LatentflowError(
                f"model.pretrained: the weights in {folder} are not those of its config.json: "
                f"{kind.replace('_', ' ')} {', '.join(map(str, sorted(names)[:3]))}."
            )
    return model
