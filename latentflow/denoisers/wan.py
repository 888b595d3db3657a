"""WanTransformer3DModel, a video DiT, in a WanPipeline: Wan 2.1, and those of Wan 2.2 that are one model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Intake, refuse_conditions


class Wan(Family):
    """A transformer over all of a clip's patches, with cross-attention to the caption, its padding zeroed."""

    model_class = "WanTransformer3DModel"
    pipeline_class = "WanPipeline"
    clips = True
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def refuse(self, index: Mapping[str, Any]) -> None:
        if index.get("boundary_ratio") is not None or (index.get("transformer_2") or [None])[-1]:
            raise ValueError("is one of two, of which transformer_2 draws at low noise, and two are not trained here")

    def intake(self, config: Mapping[str, Any]) -> Intake:
        refuse_conditions(config, ["image_dim", "added_kv_proj_dim", "pos_embed_seq_len"])
        if config["patch_size"][0] != 1:
            raise ValueError(f"has patches of {config['patch_size'][0]} frames, which are not trained here")
        return Intake.read(config, "text_dim", self.patch(config))

    def patch(self, config: Mapping[str, Any]) -> int:
        side: int = config["patch_size"][-1]
        return side

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.blocks)  # type: ignore[arg-type]

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        output: Tensor = model(xt, timestep=timestep, encoder_hidden_states=condition.text).sample
        return output

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        return {"max_sequence_length": max_tokens}
