"""UNet2DConditionModel in a StableDiffusionXLPipeline."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from latentflow.data.condition import Condition
from latentflow.denoisers.intake import Intake, refuse_conditions
from latentflow.denoisers.unet import MORE_CONDITIONS, UNetFamily

SIZES = 6


class StableDiffusionXL(UNetFamily):
    """The UNet that is also told the pooled caption and the picture's sizes (Podell et al. 2023)."""

    pipeline_class = "StableDiffusionXLPipeline"

    def intake(self, config: Mapping[str, Any]) -> Intake:
        refuse_conditions(config, MORE_CONDITIONS)
        if config.get("addition_embed_type") != "text_time":
            raise ValueError(f"has addition_embed_type {config.get('addition_embed_type')}, and SDXL's is text_time")
        pooled = config["projection_class_embeddings_input_dim"] - SIZES * config["addition_time_embed_dim"]
        return Intake.read(config, "cross_attention_dim", pooled_width=pooled)

    def added(self, condition: Condition, like: Tensor) -> dict[str, Any]:
        assert condition.sizes is not None
        return {"text_embeds": condition.pooled, "time_ids": condition.sizes.to(like.dtype)}
