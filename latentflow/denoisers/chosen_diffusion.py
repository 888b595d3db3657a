"""The definition and schedule that the parameters mean: what ``auto`` stands for, and the theory's own objects."""

from dataclasses import asdict
from pathlib import Path

from latentflow.denoisers.trained_with import trained_with
from latentflow.diffusion import Diffusion, Schedule
from latentflow.errors import LatentflowError
from latentflow.params import DiffusionParams


def resolved(given: DiffusionParams, pipeline: Path | None) -> DiffusionParams:
    """With what ``auto`` stands for: the own definition and schedule of ``pipeline``, or plain flow without one.

    Raises LatentflowError where the pipeline is asked and does not say.
    """
    if "auto" not in (given.definition, given.schedule):
        return given
    found = trained_with(pipeline) if pipeline else Diffusion()
    definition = found.name if given.definition == "auto" else given.definition
    # Another definition's time is another one, and so is a schedule on it.
    schedule = found.schedule if definition == found.name else Schedule()
    dials = asdict(schedule) | {"schedule": schedule.name} if given.schedule == "auto" else {}
    values = given.model_dump(mode="json") | {"definition": definition} | dials
    values.pop("name", None)
    return DiffusionParams.model_validate(values)


def to_diffusion(params: DiffusionParams) -> Diffusion:
    """The definition and schedule of resolved parameters; a definition of the user's own is imported here.

    Raises LatentflowError where they make none.
    """
    dials = params.model_dump(exclude={"definition", "schedule", "sigmas"})
    try:
        diffusion = Diffusion(params.definition, Schedule(params.schedule, sigmas=tuple(params.sigmas), **dials))
        diffusion.sigmas(diffusion.steps or 2, tokens=256)
    except ValueError as error:
        raise LatentflowError(f"diffusion: {error}.") from None
    return diffusion
