"""Our scheduler walks as our samplers do, inside pipelines too, and the folder carries what it needs."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from tiny import CALL, build_pipeline
from torch import Tensor

from latentflow.denoisers import schedulers
from latentflow.denoisers.schedulers import NoSchedulerError, put_scheduler, scheduler_for, scheduler_of, to_diffusers
from latentflow.diffusion import DEFINITIONS, SAMPLERS, Diffusion, Schedule, find, sample
from latentflow.errors import LatentflowError
from latentflow.files import write_json
from latentflow.generation.drawing import draw
from latentflow.registry import pyfunc_model
from latentflow.scheduler import DefinitionScheduler

OWN = """
import torch
from latentflow.diffusion import Definition

parabola = Definition(
    name="parabola",
    prediction_type="twice",
    data=lambda sigma: (1 - sigma**2, sigma),
    model=lambda sigma: (torch.full_like(sigma, -2.0), torch.ones_like(sigma)),
)
"""


def model(xt: Tensor, timestep: Tensor) -> Tensor:
    """Something that depends on everything and is no diffusion model."""
    return 0.8 * torch.tanh(xt) + 0.1 * torch.sin(timestep / 300) * xt.flip(-1)


def walk(scheduler: SchedulerMixin, xT: Tensor, steps: int) -> Tensor:
    """The loop of every diffusers pipeline."""
    scheduler.set_timesteps(steps)
    xt = xT * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = model(scheduler.scale_model_input(xt, timestep), timestep)
        generator = torch.Generator().manual_seed(int(1e4 * float(timestep.double().abs())))
        given = {"generator": generator} if "ancestral" in str(scheduler.config.get("sampler")) else {}
        xt = scheduler.step(output, timestep, xt, return_dict=False, **given)[0]
    return xt


@pytest.fixture
def noise() -> Tensor:
    return torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "ancestral"])
def test_it_walks_as_our_sampler(name: str, sampler: str, noise: Tensor) -> None:
    diffusion = Diffusion(name, Schedule("karras", sigma_min=0.02))
    definition = diffusion.definition

    def predict(xt: Tensor, sigma: Tensor) -> Tensor:
        return model(xt * definition.input_scale(sigma).float(), definition.timestep(sigma).float())

    ours = sample(definition, predict, noise, diffusion.sigmas(7), sampler)
    theirs = walk(DefinitionScheduler(sampler=sampler, **diffusion.to_json()), noise, 7)
    assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()


def test_noise_comes_from_the_generator(noise: Tensor) -> None:
    def scheduler() -> DefinitionScheduler:
        return DefinitionScheduler("trigonometric", sampler="ancestral")

    assert torch.equal(walk(scheduler(), noise, 5), walk(scheduler(), noise, 5))
    assert not torch.equal(walk(scheduler(), noise, 5), walk(DefinitionScheduler("trigonometric"), noise, 5))


@pytest.mark.parametrize(("name", "sampler"), sorted(schedulers._MAKERS))
def test_diffusers_own_scheduler_stands_for_the_same(name: str, sampler: str, noise: Tensor) -> None:
    schedule = {"edm": "karras", "flow": "shift"}.get(name, "discrete")
    diffusion = Diffusion(name, Schedule(schedule, shift=2.0))
    theirs = to_diffusers(diffusion, sampler, tokens=16)
    assert type(theirs).__module__.startswith("diffusers.")
    theirs.set_timesteps(20)
    sigmas = diffusion.sigmas(20)
    told = find(name).timestep(sigmas[:-1]).float()
    # Flow grids start at 0.999 there and have whole timesteps.
    assert (theirs.timesteps.float() - told).abs().max() <= (2.0 if name == "flow" else 1e-3)
    if sampler != "ancestral" and name != "flow":
        ours = DefinitionScheduler(sampler=sampler, **diffusion.to_json())
        ours.init_noise_sigma = theirs.init_noise_sigma
        walked = walk(theirs, noise, 20)
        assert (walked - walk(ours, noise, 20)).abs().max() < 1e-4 * walked.abs().max()


@pytest.mark.parametrize(
    ("name", "schedule", "sampler", "flow_pipeline"),
    [
        ("flow", "linear", "heun", False),
        ("flow", "karras", "euler", False),
        ("flow", "linear", "unipc", True),
        ("ddpm_epsilon", "cosine", "euler", False),
        ("ddpm_epsilon", "discrete", "euler", True),
        ("trigonometric", "linear", "euler", False),
        ("edm", "linear", "euler", False),
    ],
)
def test_where_diffusers_has_none_it_says_so_and_ours_steps_in(
    name: str, schedule: str, sampler: str, flow_pipeline: bool
) -> None:
    diffusion = Diffusion(name, Schedule(schedule))
    with pytest.raises(NoSchedulerError, match=f"no scheduler for definition {name} with schedule {schedule}"):
        to_diffusers(diffusion, sampler, 16, flow_pipeline)
    chosen = scheduler_for(diffusion, sampler, 16, flow_pipeline)
    assert isinstance(chosen, DefinitionScheduler)
    assert (chosen.config.sampler, chosen.config.definition) == (sampler, name)


def know_own_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "my_definitions.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "source"))
    monkeypatch.delitem(sys.modules, "my_definitions", raising=False)


def own_pipeline(tmp_path: Path) -> Path:
    """A pipeline folder whose definition exists nowhere else, drawn by Heun."""
    folder = build_pipeline(tmp_path / "pipeline")
    write_json(folder / "diffusion.json", Diffusion("my_definitions:parabola").to_json())
    put_scheduler(folder, scheduler_of(folder, "heun"))
    return folder


def test_code_that_a_model_brings_is_imported_only_when_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    with monkeypatch.context() as known:
        know_own_definition(tmp_path, known)
        folder = own_pipeline(tmp_path)
    write_json(folder / "generation.json", {"height": 16, "width": 16, "steps": 2, "guidance": 2.0, "call": {}})
    shutil.rmtree(tmp_path / "source")
    sys.modules.pop("my_definitions")
    importlib.invalidate_caches()
    with pytest.raises(LatentflowError, match=r"my_definitions.* --trust-code"):
        draw(folder, ["red heart"])
    assert draw(folder, ["red heart"], trust_code=True)[0].size == (16, 16)
    sys.modules.pop("my_definitions")


def test_a_folder_with_an_own_definition_draws_without_latentflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_own_definition(tmp_path, monkeypatch)
    folder = own_pipeline(tmp_path)
    here = DiffusionPipeline.from_pretrained(folder)
    here.set_progress_bar_config(disable=True)
    expected = here("red heart", generator=torch.Generator().manual_seed(3), **CALL).images[0]

    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["latentflow.scheduler", "DefinitionScheduler"]
    alone = f"""
import sys
sys.path = [place for place in sys.path if "latentflow" not in place]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import importlib.util, pathlib, torch
spec = importlib.util.spec_from_file_location("pyfunc_model", {pyfunc_model.__file__!r})
packaged = importlib.util.module_from_spec(spec)
spec.loader.exec_module(packaged)
folder = pathlib.Path({str(folder)!r})
try:
    packaged.open_pipeline(folder)
except ValueError as error:
    assert "needs latentflow installed" in str(error)
else:
    raise AssertionError("imported code that nobody trusts")
pipe = packaged.open_pipeline(folder, "cpu", trust_code=True)
import latentflow.scheduler
assert latentflow.scheduler.__file__.startswith(str(folder)), latentflow.scheduler.__file__
image = pipe("red heart", generator=torch.Generator().manual_seed(3), **{CALL!r}).images[0]
image.save({str(tmp_path / "alone.png")!r})
"""
    subprocess.run([sys.executable, "-c", alone], check=True, cwd=tmp_path, env={"PATH": "", "HOME": str(tmp_path)})
    from PIL import Image

    assert Image.open(tmp_path / "alone.png").tobytes() == expected.tobytes()
