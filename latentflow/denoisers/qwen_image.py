"""QwenImageTransformer2DModel, an MMDiT on packed latents, in a QwenImagePipeline: Qwen-Image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Intake, refuse_conditions
from latentflow.denoisers.packing import pack, unpack
from latentflow.diffusion import Guidance

PATCH = 2
MORE_CONDITIONS = ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope", "zero_cond_t")


@dataclass(frozen=True)
class KeptLength(Guidance):
    """Guidance after which every patch's vector is as long as the conditional one, as QwenImagePipeline has it."""

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """(n, c, h, w) each."""
        guided, asked = pack(super().combine(conditional, unconditional)), pack(conditional)
        ratio = torch.linalg.vector_norm(asked, dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return unpack(guided * ratio, *conditional.shape[-2:])


class QwenImage(Family):
    """A transformer in which patches and the caption's tokens, padding hidden, attend to each other jointly."""

    model_class = "QwenImageTransformer2DModel"
    pipeline_class = "QwenImagePipeline"
    flow_pipeline = True
    lays_out_sigmas = True
    adapter_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )

    def intake(self, config: Mapping[str, Any]) -> Intake:
        refuse_conditions(config, MORE_CONDITIONS)
        channels = config["in_channels"] // PATCH**2
        return Intake(channels, config["out_channels"], config["joint_attention_dim"], PATCH)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.transformer_blocks)  # type: ignore[arg-type]

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        height, width = xt.shape[-2:]
        output: Tensor = model(
            hidden_states=pack(xt),
            timestep=timestep / 1000,
            encoder_hidden_states=condition.text,
            encoder_hidden_states_mask=condition.mask,
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * len(xt),
        ).sample
        return unpack(output, height, width)

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        return {"max_sequence_length": max_tokens}

    def guidance(self, scale: float) -> Guidance:
        return KeptLength(scale)
