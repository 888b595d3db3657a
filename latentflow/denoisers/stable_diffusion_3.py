"""SD3Transformer2DModel, an MMDiT, in a StableDiffusion3Pipeline: SD3 and SD3.5."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Intake


class StableDiffusion3(Family):
    """A transformer in which patches and both text models' tokens attend to each other jointly (Esser et al. 2024)."""

    model_class = "SD3Transformer2DModel"
    pipeline_class = "StableDiffusion3Pipeline"
    flow_pipeline = True
    adapter_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )

    def intake(self, config: Mapping[str, Any]) -> Intake:
        pooled = config["pooled_projection_dim"]
        return Intake.read(
            config, "joint_attention_dim", config["patch_size"], config["pos_embed_max_size"], pooled_width=pooled
        )

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.transformer_blocks)  # type: ignore[arg-type]

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        output: Tensor = model(
            xt, encoder_hidden_states=condition.text, pooled_projections=condition.pooled, timestep=timestep
        ).sample
        return output

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        return {"max_sequence_length": max_tokens}
