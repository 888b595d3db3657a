"""A UNet led by a ControlNet (Zhang et al. 2023, arXiv 2302.05543): a trained copy of its encoder sees a picture."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    ModelMixin,
    SchedulerMixin,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.led import Images, LedFamily
from latentflow.denoisers.stable_diffusion_xl import StableDiffusionXL
from latentflow.denoisers.unet import UNet, unet_blocks
from latentflow.devices import seeded_weights
from latentflow.encoders.text import TextEncoder

CONTROLNET = "controlnet"
# What the control picture's own small network widens to while it shrinks the picture by 2, 4, 8 as the VAE does.
WIDTHS = (16, 32, 96, 256)


class Controlled(nn.Module):
    """Both as one model: what the ControlNet makes of x_t and the control picture is added inside the UNet."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet

    @property
    def config(self) -> Any:
        """The UNet's."""
        return self.unet.config

    def enable_gradient_checkpointing(self) -> None:
        """In both."""
        self.unet.enable_gradient_checkpointing()
        self.controlnet.enable_gradient_checkpointing()

    def forward(self, xt: Tensor, timestep: Tensor, text: Tensor, added: dict[str, Any], control: Tensor) -> Tensor:
        """The UNet's output (n, c, h, w); ``control`` (n, 3, h, w) in [0, 1]."""
        down, middle = self.controlnet(xt, timestep, text, control, added_cond_kwargs=added, return_dict=False)
        output: Tensor = self.unet(
            xt,
            timestep,
            text,
            added_cond_kwargs=added,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return output


class WithControlNet(LedFamily):
    """The side that is the same for all UNets."""

    led_by = "controlnet"

    def join(self, unet: nn.Module, images: Images, seed: int) -> Controlled:
        assert isinstance(unet, UNet2DConditionModel)
        return Controlled(unet, build(unet, images.factor, seed))

    def load(self, folder: Path) -> nn.Module:
        unet = super().load(folder)
        controlnet = ControlNetModel.from_pretrained(folder / CONTROLNET, use_safetensors=True)
        assert isinstance(unet, UNet2DConditionModel)
        return Controlled(unet, controlnet)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, Controlled)
        return [*unet_blocks(model.unet), *model.controlnet.down_blocks, model.controlnet.mid_block]

    def learners(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, Controlled)
        return [model.controlnet]

    def save_beside(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, Controlled)
        model.controlnet.save_pretrained(folder / CONTROLNET, safe_serialization=True)

    def parts(self, model: nn.Module) -> dict[str, ModelMixin]:
        assert isinstance(model, Controlled)
        return {self.subfolder: model.unet, CONTROLNET: model.controlnet}

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.control is not None
        control = condition.control.to(xt.dtype) / 255
        xt = xt.contiguous(memory_format=torch.channels_last)
        output: Tensor = model(xt, timestep, condition.text, self.added(condition, xt), control)
        return output


class ControlledUNet(WithControlNet, UNet):
    """Of Stable Diffusion 1.5 and 2.1, and of models made here."""

    pipeline_class = "StableDiffusionControlNetPipeline"

    def pipeline(
        self, model: ModelMixin, vae: AutoencoderKL, text: TextEncoder, scheduler: SchedulerMixin
    ) -> DiffusionPipeline:
        assert isinstance(model, Controlled)
        plain = super().pipeline(model.unet, vae, text, scheduler)
        return StableDiffusionControlNetPipeline(
            **plain.components, controlnet=model.controlnet, requires_safety_checker=False
        )


class ControlledXL(WithControlNet, StableDiffusionXL):
    """Of SDXL."""

    pipeline_class = "StableDiffusionXLControlNetPipeline"


def build(unet: UNet2DConditionModel, factor: int, seed: int) -> ControlNetModel:
    """A new ControlNet for pictures ``factor`` times as large as latents; before training it changes nothing.

    It begins as the UNet's encoder, and what it adds goes through convolutions of zeros.
    """
    halvings = factor.bit_length() - 1
    widths = (*WIDTHS, *(WIDTHS[-1],) * halvings)[: halvings + 1]
    with seeded_weights(seed):
        made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths, load_weights_from_unet=False)
        # Which from_unet leaves at its default.
        heads = {"addition_embed_type_num_heads": unet.config["addition_embed_type_num_heads"]}
        controlnet: ControlNetModel = ControlNetModel.from_config({**made.config, **heads})
    known = controlnet.state_dict().keys()
    shared = {name: tensor for name, tensor in unet.state_dict().items() if name in known}
    controlnet.load_state_dict(shared, strict=False)
    return controlnet
