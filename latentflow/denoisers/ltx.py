"""LTXVideoTransformer3DModel, a video DiT on tokens, in an LTXPipeline: LTX-Video."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Intake

FRAME_RATE = 25
"""What the pipeline takes a clip's frames per second to be unless it is told."""

FRAMES, SIDE = 8, 32
"""How many frames and pixels are one of the latents; every LTX-Video has these."""


class LTX(Family):
    """A transformer whose positions are seconds and pixels, with masked cross-attention to the caption."""

    model_class = "LTXVideoTransformer3DModel"
    pipeline_class = "LTXPipeline"
    flow_pipeline = True
    lays_out_sigmas = True
    clips = True
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def intake(self, config: Mapping[str, Any]) -> Intake:
        if (config["patch_size"], config["patch_size_t"]) != (1, 1):
            raise ValueError(f"has patches of side {config['patch_size']}, which are not trained here")
        return Intake.read(config, "caption_channels")

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.transformer_blocks)  # type: ignore[arg-type]

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        frames, height, width = xt.shape[2:]
        output: Tensor = model(
            hidden_states=xt.flatten(2).transpose(1, 2),
            encoder_hidden_states=condition.text,
            timestep=timestep,
            encoder_attention_mask=condition.mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(FRAMES / FRAME_RATE, SIDE, SIDE),
        ).sample
        answer: Tensor = output.transpose(1, 2).unflatten(2, (frames, height, width))
        return answer

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        return {"max_sequence_length": max_tokens, "frame_rate": FRAME_RATE}
