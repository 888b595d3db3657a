"""What a scheduler's config tells of a training, and what ``auto`` stands for."""

import json
from pathlib import Path

import pytest
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from encoding import PARAMS

from latentflow.denoisers.trained_with import trained_with
from latentflow.diffusion import Diffusion, Schedule
from latentflow.diffusion.schedules import dynamic_mu
from latentflow.errors import LatentflowError
from latentflow.params import DiffusionParams, TrainInputs, for_step, load
from latentflow.steps import train

STABLE = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def pipeline(folder: Path, config: object, kind: str = "StableDiffusionPipeline") -> Path:
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return folder


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (STABLE | {"prediction_type": "epsilon"}, Diffusion("ddpm_epsilon")),
        (STABLE | {"prediction_type": "v_prediction"}, Diffusion("ddpm_v_prediction")),
        (FLOW | {"shift": 3.0}, Diffusion("flow", Schedule("shift", shift=3.0))),
        (FLOW | {"shift": 1.0}, Diffusion("flow")),
        (
            {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "flow_shift": 5.0},
            Diffusion("flow", Schedule("shift", shift=5.0)),
        ),
    ],
)
def test_the_scheduler_tells(config: dict[str, object], wanted: Diffusion, tmp_path: Path) -> None:
    assert trained_with(pipeline(tmp_path, config)) == wanted


@pytest.mark.parametrize("line", [(256, 4096, 0.5, 1.15), (1024, 4096, 0.95, 2.05), (256, 8192, 0.5, 0.9)])
def test_a_shift_that_grows_with_the_size_is_on_the_same_line(
    line: tuple[int, int, float, float], tmp_path: Path
) -> None:
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    config = FLOW | {"use_dynamic_shifting": True} | dict(zip(names, line, strict=True))
    schedule = trained_with(pipeline(tmp_path, config)).schedule
    for tokens in (64, 1024, 4096, 6000):
        ours = dynamic_mu(tokens, schedule.base_shift, schedule.max_shift)
        assert ours == pytest.approx(calculate_shift(tokens, *line))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            STABLE | {"prediction_type": "epsilon", "beta_schedule": "linear"},
            "beta_schedule is linear, and only",
        ),
        (STABLE | {"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        ({"_class_name": "LCMScheduler"}, "a LCMScheduler with prediction_type None"),
    ],
)
def test_what_it_does_not_tell_is_refused(config: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(LatentflowError, match=words):
        trained_with(pipeline(tmp_path, config))


def resolved(*overrides: str) -> DiffusionParams:
    inputs = for_step(load(PARAMS, [*overrides]), "train")
    assert isinstance(inputs, TrainInputs)
    return train.resolved(inputs, inputs.model).diffusion


def test_auto_is_the_pipelines_own_or_plain_flow(tmp_path: Path) -> None:
    plain = resolved()
    assert (plain.definition, plain.schedule) == ("flow", "linear")
    assert plain == resolved("diffusion.definition=flow", "diffusion.schedule=linear")
    folder = pipeline(tmp_path, FLOW | {"shift": 3.0}, "StableDiffusion3Pipeline")
    own = resolved(f"model.pretrained={folder}")
    assert (own.definition, own.schedule, own.shift) == ("flow", "shift", 3.0)
    other = resolved(f"model.pretrained={folder}", "diffusion.definition=ddpm_epsilon")
    assert (other.definition, other.schedule) == ("ddpm_epsilon", "linear")
