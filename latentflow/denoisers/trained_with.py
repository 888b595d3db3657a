"""The definition and schedule with which a pipeline was trained: ours, or as its scheduler's config tells."""

import json
from pathlib import Path
from typing import Any

from latentflow.denoisers.families import DIFFUSION, read_diffusion
from latentflow.diffusion import Diffusion, Schedule
from latentflow.diffusion.definitions import BETA_END, BETA_START
from latentflow.errors import LatentflowError

CONFIG = "scheduler/scheduler_config.json"
# What diffusers' schedulers do where their config is silent.
_DDPM = {"num_train_timesteps": 1000, "trained_betas": None, "rescale_betas_zero_snr": False}
_BETAS = {"beta_schedule": "scaled_linear", "beta_start": BETA_START, "beta_end": BETA_END}


def trained_with(pipeline: Path) -> Diffusion:
    """Of a saved pipeline. Raises LatentflowError where its scheduler's config says nothing that is known here."""
    if (pipeline / DIFFUSION).is_file():
        return read_diffusion(pipeline)
    path = pipeline / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LatentflowError(
            f"{path} cannot be read ({error}); name diffusion.definition and diffusion.schedule yourself."
        ) from error
    kind = config.get("_class_name", "")
    if kind.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
        return Diffusion("flow", _flow_schedule(config))
    if config.get("prediction_type") not in ("epsilon", "v_prediction", "sample"):
        raise LatentflowError(
            f"{path}: a {kind} with prediction_type {config.get('prediction_type')} does not say what the model "
            "answers; name diffusion.definition and diffusion.schedule yourself."
        )
    for name, known in (_DDPM | _BETAS).items():
        if (found := config.get(name, _DDPM.get(name))) != known:
            raise LatentflowError(
                f"{path}: {name} is {found}, and only Stable Diffusion's, {known}, is known; name a definition of "
                "your own in diffusion.definition (docs/theory.md shows one)."
            )
    return Diffusion(f"ddpm_{config['prediction_type']}", Schedule("linear"))


def _flow_schedule(config: dict[str, Any]) -> Schedule:
    """A constant shift, or one that grows with the number of tokens: the line of μ, at our 256 and 4096 tokens."""
    if config.get("use_dynamic_shifting"):
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (high - low) / (many - few)
        base, most = low + slope * (256 - few), low + slope * (4096 - few)
        return Schedule("dynamic_shift", base_shift=base, max_shift=most)
    shift = config.get("shift", config.get("flow_shift", 1.0))
    return Schedule("linear") if shift == 1 else Schedule("shift", shift=shift)
