"""UNet2DConditionModel in a StableDiffusionXLPipeline."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Intake, refuse_conditions
from latentflow.denoisers.unet import ATTENTION, MORE_CONDITIONS, unet_blocks

SIZES = 6


class StableDiffusionXL(Family):
    """The UNet that is also told the pooled caption and the picture's sizes (Podell et al. 2023)."""

    subfolder = "unet"
    model_class = "UNet2DConditionModel"
    pipeline_class = "StableDiffusionXLPipeline"
    memory_format = torch.channels_last
    adapter_targets = ATTENTION

    def intake(self, config: Mapping[str, Any]) -> Intake:
        refuse_conditions(config, MORE_CONDITIONS)
        if config.get("addition_embed_type") != "text_time":
            raise ValueError(f"has addition_embed_type {config.get('addition_embed_type')}, and SDXL's is text_time")
        pooled = config["projection_class_embeddings_input_dim"] - SIZES * config["addition_time_embed_dim"]
        return Intake.read(config, "cross_attention_dim", pooled_width=pooled)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return unet_blocks(model)

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.sizes is not None
        told = {"text_embeds": condition.pooled, "time_ids": condition.sizes.to(xt.dtype)}
        output: Tensor = model(
            xt.contiguous(memory_format=torch.channels_last), timestep, condition.text, added_cond_kwargs=told
        ).sample
        return output
