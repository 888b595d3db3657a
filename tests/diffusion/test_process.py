"""A diffusion is saved as plain values and read back the same."""

import json
from typing import Any

import pytest
import torch

from latentflow.diffusion import DEFINITIONS, SCHEDULES, Diffusion, Schedule


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_diffusion_survives_json(name: str, schedule: str) -> None:
    most = Diffusion(name).definition.sigma_max
    diffusion = Diffusion(name, Schedule(schedule, shift=2.5, max_shift=1.3, rho=5.0, sigmas=(most, most / 3, 0.0)))
    back = Diffusion.from_json(json.loads(json.dumps(diffusion.to_json())))
    assert back == diffusion
    assert torch.equal(back.sigmas(2, tokens=1024), diffusion.sigmas(2, tokens=1024))
    assert torch.equal(back.sigmas(2, tokens=1024), diffusion.schedule(diffusion.definition, 2, 1024))


def test_what_is_left_out_of_a_schedule_takes_its_default() -> None:
    read = Diffusion.from_json({"definition": "edm", "schedule": {"name": "karras", "rho": 5.0}})
    assert read == Diffusion("edm", Schedule("karras", rho=5.0))


def test_the_definition_is_built_once() -> None:
    diffusion = Diffusion("ddpm_epsilon")
    assert diffusion.definition is diffusion.definition
    assert diffusion.definition.prediction_type == "epsilon"


def test_only_given_sigmas_fix_the_steps() -> None:
    assert Diffusion("flow", Schedule("given", sigmas=(1.0, 0.5, 0.2, 0.0))).steps == 3
    assert Diffusion("flow", Schedule("karras")).steps is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "a diffusion is `definition` and `schedule`, found nothing"),
        ({"definition": "flow"}, "a diffusion is `definition` and `schedule`, found definition"),
        ({"definition": "flow", "schedule": {}, "sampler": "euler"}, "found definition, schedule, sampler"),
        (
            {"definition": "flow", "schedule": {"shfit": 3.0, "bend": 1}},
            "a schedule has no bend, shfit; its fields are",
        ),
        ({"definition": "flow", "schedule": {"name": "lineer"}}, "schedule 'lineer' is not one of"),
        ({"definition": "flow", "schedule": "linear"}, "schedule"),
        ({"definition": "flow", "schedule": None}, "schedule"),
    ],
)
def test_what_is_no_diffusion_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Diffusion.from_json(values)


def test_an_unknown_definition_is_refused_when_it_is_asked_for() -> None:
    diffusion = Diffusion.from_json({"definition": "floww", "schedule": {}})
    with pytest.raises(ValueError, match="'floww' is neither one of"):
        diffusion.sigmas(2)
