"""The diffusers scheduler that iterates as a definition, schedule and sampler do: diffusers' own where there is one."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from latentflow.denoisers.carried import carry_code
from latentflow.denoisers.families import FRAMES, GENERATION, family_of, read_diffusion
from latentflow.denoisers.family import Family
from latentflow.diffusion import Diffusion
from latentflow.diffusion.definitions import BETA_END, BETA_START
from latentflow.diffusion.schedules import dynamic_mu
from latentflow.encoders.latent_shapes import latent_shape
from latentflow.errors import LatentflowError
from latentflow.files import write_json
from latentflow.scheduler import DefinitionScheduler


class NoSchedulerError(ValueError):
    """diffusers has no scheduler for this combination; the message names it."""


def scheduler_of(folder: Path, sampler: str) -> SchedulerMixin:
    """The scheduler with which a saved pipeline folder is drawn by ``sampler``.

    Raises LatentflowError where the pipeline cannot be drawn by it.
    """
    family, diffusion = family_of(folder), read_diffusion(folder)
    check_sampler(family, sampler)
    own = _read(folder / "scheduler" / "scheduler_config.json")
    shifts = diffusion.name == "flow" and diffusion.schedule.name == "dynamic_shift" and own.get("use_dynamic_shifting")
    if sampler == "euler" and family.flow_pipeline and shifts:
        # Its shift follows the size of each picture, which a scheduler made for one size does not.
        return FlowMatchEulerDiscreteScheduler.from_config(own)
    config = _read(folder / family.subfolder / "config.json")
    tokens = family.tokens(config, (0, *_latent_size(folder, config)))
    return scheduler_for(diffusion, sampler, tokens, family.flow_pipeline)


def check_sampler(family: Family, sampler: str) -> None:
    """Raises LatentflowError where the family's pipeline cannot be drawn by that sampler."""
    if sampler not in family.samplers:
        raise LatentflowError(
            f"evaluate.sampler {sampler}: a {family.pipeline_class} lays out its own σ, which only "
            f"{', '.join(family.samplers)} takes; set it to {family.samplers[0]}."
        )


def check_diffusion(family: Family, diffusion: Diffusion) -> None:
    """Raises LatentflowError where what would be trained could not be drawn by the family's pipeline."""
    if family.led_by_frame and diffusion.name != "flow":
        raise LatentflowError(
            f"diffusion.definition {diffusion.name}: a {family.pipeline_class} keeps the first frame in a way of flow "
            "matching's own; leave it at auto."
        )
    if family.lays_out_sigmas and (diffusion.name != "flow" or _flow_shift(diffusion, 1) is None):
        raise LatentflowError(
            f"diffusion: a {family.pipeline_class} lays out its own σ, which definition {diffusion.name} with schedule "
            f"{diffusion.schedule.name} does not take; leave diffusion.definition and diffusion.schedule at auto."
        )


def _latent_size(folder: Path, config: dict[str, Any]) -> tuple[int, int, int]:
    """Frames, height and width of the latents of what a saved pipeline draws unless told otherwise."""
    if "sample_size" in config:
        return 1, config["sample_size"], config["sample_size"]
    drawn, shape = _read(folder / GENERATION), latent_shape(_read(folder / "vae" / "config.json"))
    frames = shape.shortened(drawn["call"].get(FRAMES, 1))
    return frames, drawn["height"] // shape.factor, drawn["width"] // shape.factor


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def put_scheduler(folder: Path, scheduler: SchedulerMixin) -> None:
    """Makes ``scheduler`` the one that a saved pipeline folder is loaded with, and adds its code if it is ours."""
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = type(scheduler)
    library = "diffusers" if kind.__module__.startswith("diffusers.") else kind.__module__
    write_json(folder / "model_index.json", index | {"scheduler": [library, kind.__name__]})
    if isinstance(scheduler, DefinitionScheduler):
        carry_code(folder, scheduler.config.definition)


def scheduler_for(diffusion: Diffusion, sampler: str, tokens: int, flow_pipeline: bool = False) -> SchedulerMixin:
    """A scheduler for a pipeline of pictures of ``tokens`` tokens: diffusers' own if one matches, else ours.

    ``flow_pipeline``: the pipeline (AuraFlow's) hands flow timesteps on uncut and never scales its initial noise.
    """
    try:
        return to_diffusers(diffusion, sampler, tokens, flow_pipeline)
    except NoSchedulerError:
        return DefinitionScheduler(sampler=sampler, tokens=tokens, **diffusion.to_json())


def to_diffusers(diffusion: Diffusion, sampler: str, tokens: int, flow_pipeline: bool = False) -> SchedulerMixin:
    """diffusers' own scheduler. Raises NoSchedulerError that names the combination where none iterates the same.

    The grids agree up to diffusers' own habits: whole timesteps, and a flow grid that starts at σ = 0.999.
    """
    if (diffusion.name, sampler) in _MAKERS:
        made = _MAKERS[diffusion.name, sampler](diffusion, tokens, flow_pipeline)
        if made is not None:
            return made
    raise NoSchedulerError(
        f"diffusers has no scheduler for definition {diffusion.name} with schedule {diffusion.schedule.name} and "
        f"sampler {sampler}{' in this pipeline' if flow_pipeline else ''}."
    )


_Maker = Callable[[Diffusion, int, bool], SchedulerMixin | None]


def _flow_shift(diffusion: Diffusion, tokens: int) -> float | None:
    """The static factor of a flow schedule for pictures of so many tokens; None where it is no such schedule."""
    schedule = diffusion.schedule
    if schedule.name == "linear":
        return 1.0
    if schedule.name == "shift":
        return schedule.shift
    if schedule.name == "dynamic_shift":
        return math.exp(dynamic_mu(tokens, schedule.base_shift, schedule.max_shift))
    return None


def _flow(kind: type, **fixed: Any) -> _Maker:
    def make(diffusion: Diffusion, tokens: int, flow_pipeline: bool) -> SchedulerMixin | None:
        shift = _flow_shift(diffusion, tokens)
        if shift is None or flow_pipeline:
            return None
        # steps_offset plays no part in flow grids; StableDiffusionPipeline complains unless it is 1.
        return kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, steps_offset=1, **fixed)

    return make


def _flow_euler(diffusion: Diffusion, tokens: int, flow_pipeline: bool) -> SchedulerMixin | None:
    shift = _flow_shift(diffusion, tokens)
    if flow_pipeline and shift is not None:
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return _flow(DPMSolverMultistepScheduler, solver_order=1)(diffusion, tokens, flow_pipeline)


def _ddpm(prediction_type: str, kind: type, **fixed: Any) -> _Maker:
    def make(diffusion: Diffusion, tokens: int, flow_pipeline: bool) -> SchedulerMixin | None:  # noqa: ARG001
        if flow_pipeline or diffusion.schedule.name not in ("linear", "discrete"):
            return None
        return kind(
            beta_schedule="scaled_linear",
            beta_start=BETA_START,
            beta_end=BETA_END,
            prediction_type=prediction_type,
            timestep_spacing="trailing",
            steps_offset=1,
            **fixed,
        )

    return make


def _edm(kind: type, **fixed: Any) -> _Maker:
    def make(diffusion: Diffusion, tokens: int, flow_pipeline: bool) -> SchedulerMixin | None:  # noqa: ARG001
        if flow_pipeline or diffusion.schedule.name != "karras":
            return None
        schedule = diffusion.schedule
        return kind(
            sigma_min=schedule.sigma_min,
            sigma_max=diffusion.definition.sigma_max,
            sigma_data=1.0,
            rho=schedule.rho,
            **fixed,
        )

    return make


_UNCLIPPED = {"clip_sample": False}
_MAKERS: dict[tuple[str, str], _Maker] = {
    ("flow", "euler"): _flow_euler,
    ("flow", "dpm_solver_2m"): _flow(DPMSolverMultistepScheduler, solver_order=2),
    ("flow", "unipc"): _flow(UniPCMultistepScheduler, solver_order=2),
    ("flow", "ancestral"): _flow(DPMSolverMultistepScheduler, solver_order=1, algorithm_type="sde-dpmsolver++"),
    ("edm", "euler"): _edm(EDMEulerScheduler),
    ("edm", "dpm_solver_2m"): _edm(EDMDPMSolverMultistepScheduler, solver_order=2),
} | {
    (f"ddpm_{prediction_type}", sampler): _ddpm(prediction_type, kind, **fixed)
    for prediction_type in ("epsilon", "v_prediction", "sample")
    for sampler, kind, fixed in (
        ("euler", DDIMScheduler, _UNCLIPPED),
        ("ancestral", DDPMScheduler, _UNCLIPPED),
        ("dpm_solver_2m", DPMSolverMultistepScheduler, {"solver_order": 2}),
        ("unipc", UniPCMultistepScheduler, {"solver_order": 2}),
    )
}
