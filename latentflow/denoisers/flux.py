"""FluxTransformer2DModel, an MMDiT on packed latents, in a FluxPipeline: FLUX.1."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Intake
from latentflow.denoisers.packing import pack, unpack

PATCH = 2


class Flux(Family):
    """A transformer of joint and then single blocks; [dev] was distilled, so that it is told a guidance scale."""

    model_class = "FluxTransformer2DModel"
    pipeline_class = "FluxPipeline"
    flow_pipeline = True
    lays_out_sigmas = True
    contrasts = False
    adapter_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    def intake(self, config: Mapping[str, Any]) -> Intake:
        packed = PATCH**2
        channels, outputs = config["in_channels"], config["out_channels"] or config["in_channels"]
        return Intake(
            channels // packed,
            outputs // packed,
            config["joint_attention_dim"],
            PATCH,
            pooled_width=config["pooled_projection_dim"],
        )

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return [*model.transformer_blocks, *model.single_transformer_blocks]  # type: ignore[arg-type,list-item,misc]

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        height, width = xt.shape[-2:]
        output: Tensor = model(
            hidden_states=pack(xt),
            timestep=timestep / 1000,
            guidance=condition.guidance,
            pooled_projections=condition.pooled,
            encoder_hidden_states=condition.text,
            txt_ids=xt.new_zeros(condition.text.shape[1], 3),
            img_ids=_places(height // PATCH, width // PATCH).to(xt),
        ).sample
        return unpack(output, height, width)

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        return {"max_sequence_length": max_tokens}

    def patch(self, config: Mapping[str, Any]) -> int:  # noqa: ARG002
        return PATCH

    def told_guidance(self, config: Mapping[str, Any]) -> bool:
        return bool(config["guidance_embeds"])


def _places(height: int, width: int) -> Tensor:
    """(0, row, column) of every patch (height·width, 3)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
