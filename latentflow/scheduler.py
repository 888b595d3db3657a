"""Any definition, schedule and sampler as a diffusers scheduler, where diffusers has none of its own.

A pipeline folder that names this class loads with plain diffusers wherever this file can be imported; the packaged
MLflow model brings it along.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from latentflow.diffusion import Diffusion
from latentflow.diffusion.sampling import Euler, Heun, Point, Sampler, make, points


class DefinitionScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """The samplers of ``latentflow.diffusion`` behind diffusers' scheduler interface."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        definition: str = "flow",
        schedule: dict[str, Any] | None = None,
        sampler: str = "euler",
        tokens: int | None = None,
        num_train_timesteps: int = 1000,
    ) -> None:
        """``definition`` and ``schedule`` as ``Diffusion.to_json`` spells them; ``tokens`` is for `dynamic_shift`.

        ``num_train_timesteps`` is there for pipelines that read it.
        """
        self._diffusion = Diffusion.from_json({"definition": definition, "schedule": schedule or {"name": "linear"}})
        self._path: list[Point] = []
        # Heun calls the model twice per step, so it sees most points twice.
        self.order = 2 if sampler == "heun" else 1
        first = torch.tensor(self._diffusion.definition.sigma_max, dtype=torch.float64)
        self.init_noise_sigma = self._diffusion.definition.data(first)[1].item()
        self.timesteps = self.sigmas = torch.empty(0)

    def set_timesteps(
        self, num_inference_steps: int, device: "str | torch.device | None" = None, sigmas: None = None
    ) -> None:
        """Lays out the schedule and forgets the run before; ``sigmas`` is only there for pipelines that pass None."""
        if sigmas is not None:
            raise ValueError("this scheduler lays out its own σ: call the pipeline without sigmas")
        definition = self._diffusion.definition
        grid = self._diffusion.sigmas(self._diffusion.steps or num_inference_steps, self.config.tokens)
        self._path = points(definition, grid)
        self._calls = self._order_of_calls(len(grid) - 1)
        self._call = 0
        self._begun: tuple[Tensor, Tensor] | None = None
        self._generator: Generator | list[Generator] | None = None
        self._sampler = self._make()
        self.sigmas = grid[[*(index for index, _ in self._calls), -1]].float()
        told = definition.timestep(grid[[index for index, _ in self._calls]])
        self.timesteps = told.to(device=device, dtype=torch.float32)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """For pipelines that say where a run begins, which is at the first point."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """x_t as the model wants it; on paths with unit input scale as it is."""
        now = self._path[self._calls[min(self._call, len(self._calls) - 1)][0]]
        scale: float = self._diffusion.definition.input_scale(now.sigma).item()
        return sample if scale == 1 else sample * scale

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: "Generator | list[Generator] | None" = None,
        return_dict: bool = True,
    ) -> "SchedulerOutput | tuple[Tensor]":
        """x_t at the next point of the schedule, in the order in which ``timesteps`` lists the calls."""
        index, correcting = self._calls[self._call]
        self._call += 1
        self._generator = generator
        xt = sample.float()
        if correcting:
            assert self._begun
            before = self._path[index - 1]
            xt = Heun.corrected(*self._begun, before, xt, model_output.float(), self._path[index])
        else:
            self._begun = xt, model_output.float()
            xt = self._sampler.step(index, xt, model_output.float(), self._path[index], self._path[index + 1])
        xt = xt.to(sample.dtype)
        return SchedulerOutput(prev_sample=xt) if return_dict else (xt,)

    def _order_of_calls(self, steps: int) -> list[tuple[int, bool]]:
        """(point, whether the call corrects the step that led there)."""
        if self.config.sampler != "heun":
            return [(index, False) for index in range(steps)]
        return [call for index in range(steps) for call in (((index, True),) if index else ()) + ((index, False),)]

    def _make(self) -> Sampler:
        if self.config.sampler == "heun":
            return Euler()
        return make(self.config.sampler, _no_model, self._noise)

    def _noise(self, _: int, xt: Tensor) -> Tensor:
        drawn: Tensor = randn_tensor(xt.shape, generator=self._generator, device=xt.device, dtype=xt.dtype)
        return drawn


def _no_model(xt: Tensor, sigma: Tensor) -> Tensor:
    raise RuntimeError("a scheduler is handed the model's outputs, it does not ask for them")
