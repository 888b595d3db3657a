"""Flux2Transformer2DModel, an MMDiT on latents that its VAE has packed, in a Flux2KleinPipeline: FLUX.2 [klein]."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Intake, refuse_conditions


class Flux2(Family):
    """A transformer of joint and then single blocks; a latent is a token, at a place of four numbers."""

    model_class = "Flux2Transformer2DModel"
    pipeline_class = "Flux2KleinPipeline"
    flow_pipeline = True
    lays_out_sigmas = True
    adapter_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv_mlp_proj"),
    )

    def refuse(self, index: Mapping[str, Any]) -> None:
        if index.get("is_distilled"):
            raise ValueError("was distilled to a few steps, which training undoes; fine-tune the base model of it")

    def intake(self, config: Mapping[str, Any]) -> Intake:
        refuse_conditions(config, ["guidance_embeds"])
        return Intake.read(config, "joint_attention_dim", config["patch_size"])

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return [*model.transformer_blocks, *model.single_transformer_blocks]  # type: ignore[arg-type,list-item,misc]

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        height, width = xt.shape[-2:]
        output: Tensor = model(
            hidden_states=xt.flatten(2).transpose(1, 2),
            timestep=timestep / 1000,
            encoder_hidden_states=condition.text,
            txt_ids=_places(1, 1, condition.text.shape[1]).to(xt),
            img_ids=_places(height, width, 1).to(xt),
        ).sample
        answer: Tensor = output.transpose(1, 2).unflatten(2, (height, width))
        return answer

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        return {"max_sequence_length": max_tokens}


def _places(rows: int, columns: int, words: int) -> Tensor:
    """(0, row, column, word) of everything (rows·columns·words, 4)."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns), torch.arange(words))
