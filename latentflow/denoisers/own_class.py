"""A class of the user's own, named as ``module:Class`` in ``model.denoiser``, in the pipeline that comes along."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.carried import carry_code
from latentflow.denoisers.family import NewFamily
from latentflow.denoisers.intake import Intake, Shape
from latentflow.denoisers.own_check import Choice, check_class
from latentflow.encoders import vae as vae_room
from latentflow.encoders.text import TextEncoder
from latentflow.errors import LatentflowError
from latentflow.own_code import code_digest
from latentflow.own_denoiser import OwnDenoiser, trained_class
from latentflow.own_pipeline import OwnDenoiserPipeline
from latentflow.params import ModelParams


class OwnClass(NewFamily):
    """Any torch module of the call signature that ``OwnDenoiser.forward`` has."""

    model_class = "OwnDenoiser"
    pipeline_class = "OwnDenoiserPipeline"
    # Which layers there are only its author knows.
    adapter_targets = ()
    loads_adapters = False

    @property
    def kind(self) -> type[ModelMixin]:
        kind: type[ModelMixin] = OwnDenoiser
        return kind

    def load(self, folder: Path) -> nn.Module:
        try:
            return super().load(folder)
        except ValueError as error:
            raise LatentflowError(f"{folder}: {error}.") from error

    def patch_size(self, params: ModelParams) -> int:  # noqa: ARG002
        return 1

    def intake(self, config: Mapping[str, Any]) -> Intake:
        trained_class(config["own_class"], config["source"])
        channels = config["latent_shape"][0]
        return Intake(channels, channels, config["text_width"])

    def check_new(self, params: ModelParams, shapes: Sequence[Shape], text_width: int) -> None:
        check_class(Choice(params.denoiser, params.own), shapes, text_width)

    def check_saved(self, config: Mapping[str, Any], shapes: Sequence[Shape]) -> None:
        choice = Choice(config["own_class"], config["arguments"], config["latent_shape"])
        check_class(choice, shapes, config["text_width"])

    def build(self, params: ModelParams, latent_shape: list[int], text_width: int) -> OwnDenoiser:
        name = params.denoiser
        model: OwnDenoiser = OwnDenoiser(name, code_digest(name), list(latent_shape), text_width, dict(params.own))
        return model

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, OwnDenoiser)
        found: list[nn.Module] = model.blocks
        return found

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        output: Tensor = model(xt, timestep, condition.text, condition.mask)
        return output

    def pipeline(
        self, model: OwnDenoiser, vae: AutoencoderKL, text: TextEncoder, scheduler: SchedulerMixin
    ) -> OwnDenoiserPipeline:
        return OwnDenoiserPipeline(vae, text.model, text.tokenizer, model, scheduler, vae_room.factor(vae))

    def bring_code(self, model: nn.Module, folder: Path) -> None:
        config: Any = model.config
        carry_code(folder, config["own_class"])
