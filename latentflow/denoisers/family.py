"""What the project needs to know of a denoiser class of diffusers and the pipeline it ships in."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.intake import Intake, Shape
from latentflow.diffusion import SAMPLERS, Guidance
from latentflow.encoders.text import TextEncoder
from latentflow.params import ModelParams


class Family(ABC):
    """One denoiser class in one pipeline: how it is called, what it takes, how it is adapted."""

    subfolder: ClassVar[str] = "transformer"
    model_class: ClassVar[str]
    pipeline_class: ClassVar[str]
    flow_pipeline: ClassVar[bool] = False
    """Whether the pipeline never scales its initial noise, so that it fits flow matching's own scheduler only."""
    lays_out_sigmas: ClassVar[bool] = False
    """Whether the pipeline hands its scheduler σ, which of ours only diffusers' own flow Euler takes."""
    contrasts: ClassVar[bool] = True
    """Whether the pipeline's guidance_scale is classifier-free guidance."""
    clips: ClassVar[bool] = False
    """Whether its latents are those of clips (c, f, h, w), of which a picture is one of a single frame."""
    led_by_frame: ClassVar[bool] = False
    """Whether it is told a clip's first frame, from which it goes on."""
    memory_format: ClassVar[torch.memory_format] = torch.contiguous_format
    """How the weights are laid out while training."""
    adapter_targets: ClassVar[tuple[str, ...]]
    """Endings of the names of the layers that get low-rank changes unless the parameters name others."""
    led_by: ClassVar[str] = ""
    """What a picture given to the pipeline is for, `controlnet` or `ip_adapter`; for others nothing."""
    loads_adapters: ClassVar[bool] = True
    """Whether the pipeline loads a file of low-rank changes; else only the merged model can be delivered."""

    @property
    def samplers(self) -> tuple[str, ...]:
        """The names of the samplers by which the pipeline can be drawn."""
        return ("euler",) if self.lays_out_sigmas else SAMPLERS

    @abstractmethod
    def intake(self, config: Mapping[str, Any]) -> Intake:
        """What a saved model takes, by its config. Raises ValueError where it needs what training does not give."""

    @abstractmethod
    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The repeated parts that hold most of the weights, in order: what is sharded and compiled one by one."""

    @property
    def kind(self) -> type[ModelMixin]:
        """The class of the family's denoisers."""
        import diffusers

        return getattr(diffusers, self.model_class)  # type: ignore[no-any-return]

    def load(self, folder: Path) -> nn.Module:
        """The model of a saved pipeline."""
        return self.kind.from_pretrained(folder / self.subfolder, use_safetensors=True)  # type: ignore[no-any-return]

    def learners(self, model: nn.Module) -> list[nn.Module]:
        """What of the model is trained where a part beside the denoiser is; for others all of it."""
        return [model]

    def save_beside(self, model: nn.Module, folder: Path) -> None:  # noqa: B027  most have nothing to write
        """Writes what was trained beside the denoiser to ``folder`` by itself; for others nothing."""

    def parts(self, model: nn.Module) -> dict[str, ModelMixin]:
        """What the pipeline has of the model, by subfolder; in place, so ``save_beside`` comes first."""
        return {self.subfolder: model}  # type: ignore[dict-item]

    def bring_code(self, model: nn.Module, folder: Path) -> None:  # noqa: B027  most need none
        """Writes the code to a pipeline's folder that draws with the model; for others nothing."""

    @abstractmethod
    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The model's output, of x_t's shape, for x_t, timesteps in thousandths (n,) and the conditions.

        x_t is (n, c, h, w), or (n, c, f, h, w) where the family takes clips.
        """

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:  # noqa: ARG002
        """What the pipeline's call must be given so that it conditions as training did."""
        return {}

    def guidance(self, scale: float) -> Guidance:
        """Guidance as the pipeline does it."""
        return Guidance(scale if self.contrasts else 1.0)

    def told_guidance(self, config: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether the model was distilled so that it is told a guidance scale."""
        return False

    def patch(self, config: Mapping[str, Any]) -> int:
        """The side of the latents' patches that become a token each; a UNet, which has none, counts 2 as others do."""
        side: int = config.get("patch_size", 2)
        return side

    def check_saved(self, config: Mapping[str, Any], shapes: Sequence[Shape]) -> None:  # noqa: B027
        """Raises LatentflowError where the class of a saved model, tried out, cannot take latents like these."""

    def refuse(self, index: Mapping[str, Any]) -> None:  # noqa: B027
        """Raises ValueError where a pipeline's model_index.json names more than is trained here."""

    def tokens(self, config: Mapping[str, Any], latent_shape: Sequence[int]) -> int:
        """How many tokens a picture or a clip is."""
        return math.prod(latent_shape[1:]) // self.patch(config) ** 2


class NewFamily(Family):
    """A family of which new models are made too."""

    fixed_positions: ClassVar[bool] = False
    """Whether a new model learns its patches' positions, so that it knows pictures of one size only."""

    @abstractmethod
    def patch_size(self, params: ModelParams) -> int:
        """The side of a patch of a new model."""

    def check_new(self, params: ModelParams, shapes: Sequence[Shape], text_width: int) -> None:
        """Raises LatentflowError where a new model of those parameters cannot take latents and captions like these."""

    @abstractmethod
    def build(self, params: ModelParams, latent_shape: list[int], text_width: int) -> ModelMixin:
        """A new model for latents of shape (c, h, w) and captions of ``text_width``."""

    @abstractmethod
    def pipeline(
        self, model: ModelMixin, vae: AutoencoderKL, text: TextEncoder, scheduler: SchedulerMixin
    ) -> DiffusionPipeline:
        """The native pipeline around the model, with a text encoder that is a model by itself."""
