"""UNet2DConditionModel in a StableDiffusionPipeline."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import Family, NewFamily
from latentflow.denoisers.intake import Intake, refuse_conditions
from latentflow.encoders.text import TextEncoder
from latentflow.params import ModelParams

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MORE_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
"""Settings of a UNet that must be told more than any pipeline here tells it."""


def unet_blocks(model: nn.Module) -> list[nn.Module]:
    """A UNet's levels, down and up."""
    return [*model.down_blocks, model.mid_block, *model.up_blocks]  # type: ignore[arg-type,list-item,misc]


class UNetFamily(Family):
    """A convolutional UNet with cross-attention to all caption tokens, padding included, as its pipeline does."""

    subfolder = "unet"
    model_class = "UNet2DConditionModel"
    memory_format = torch.channels_last
    adapter_targets = ATTENTION

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return unet_blocks(model)

    def added(self, condition: Condition, like: Tensor) -> dict[str, Any]:  # noqa: ARG002
        """What the UNet is told besides the caption's tokens, in the type of ``like``."""
        return {}

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        told = self.added(condition, xt)
        output: Tensor = model(
            xt.contiguous(memory_format=torch.channels_last), timestep, condition.text, added_cond_kwargs=told
        ).sample
        return output


class UNet(UNetFamily, NewFamily):
    """That of Stable Diffusion 1.5 and 2.1, and of new models."""

    pipeline_class = "StableDiffusionPipeline"

    def patch_size(self, params: ModelParams) -> int:  # noqa: ARG002
        return 1

    def intake(self, config: Mapping[str, Any]) -> Intake:
        more = [*MORE_CONDITIONS]
        if config.get("addition_embed_type") != "text":  # That one is made of the caption itself.
            more.append("addition_embed_type")
        refuse_conditions(config, more)
        return Intake.read(config, "cross_attention_dim")

    def build(self, params: ModelParams, latent_shape: list[int], text_width: int) -> UNet2DConditionModel:
        sizes = params.unet
        down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in sizes.attention]
        up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(sizes.attention)]
        return UNet2DConditionModel(
            sample_size=latent_shape[-1],
            in_channels=latent_shape[0],
            out_channels=latent_shape[0],
            block_out_channels=tuple(sizes.channels),
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            layers_per_block=sizes.layers_per_block,
            cross_attention_dim=text_width,
            attention_head_dim=sizes.head_dim,
            addition_embed_type="text" if sizes.pooled_text else None,
            addition_embed_type_num_heads=sizes.head_dim,
        )

    def pipeline(
        self, model: UNet2DConditionModel, vae: AutoencoderKL, text: TextEncoder, scheduler: SchedulerMixin
    ) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            unet=model,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
