"""ZImageTransformer2DModel, a single-stream DiT, in a ZImagePipeline: Z-Image."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Intake, refuse_conditions

PATCH = 2


class ZImage(Family):
    """A transformer on the caption's tokens and the patches in one sequence; its time runs from noise to data."""

    model_class = "ZImageTransformer2DModel"
    pipeline_class = "ZImagePipeline"
    flow_pipeline = True
    lays_out_sigmas = True
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def intake(self, config: Mapping[str, Any]) -> Intake:
        refuse_conditions(config, ["siglip_feat_dim"])
        if PATCH not in config["all_patch_size"] or 1 not in config["all_f_patch_size"]:
            raise ValueError(f"has no patches of {PATCH}x{PATCH} but of {config['all_patch_size']}")
        return Intake(config["in_channels"], config["in_channels"], config["cap_feat_dim"], PATCH)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return [*model.noise_refiner, *model.context_refiner, *model.layers]  # type: ignore[arg-type,list-item,misc]

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        # Its velocity points from noise to data. Pictures of one frame and captions without padding, one by one.
        captions = [text[mask] for text, mask in zip(condition.text, condition.mask, strict=True)]
        output: list[Tensor] = model(list(xt.unsqueeze(2)), (1000 - timestep) / 1000, captions).sample
        return -torch.stack(output).squeeze(2)

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        return {"max_sequence_length": max_tokens}
