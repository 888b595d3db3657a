"""AuraFlowTransformer2DModel, an MMDiT, in an AuraFlowPipeline."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, AutoencoderKL, SchedulerMixin
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import NewFamily
from latentflow.denoisers.intake import Intake
from latentflow.encoders.text import TextEncoder
from latentflow.params import ModelParams


class AuraFlow(NewFamily):
    """A transformer in which patches and caption tokens attend to each other jointly; padding is zeroed."""

    model_class = "AuraFlowTransformer2DModel"
    pipeline_class = "AuraFlowPipeline"
    flow_pipeline = True
    fixed_positions = True
    adapter_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )

    def patch_size(self, params: ModelParams) -> int:
        return params.auraflow.patch_size

    def intake(self, config: Mapping[str, Any]) -> Intake:
        grid = isqrt(config["pos_embed_max_size"])
        return Intake.read(config, "joint_attention_dim", config["patch_size"], grid)

    def build(self, params: ModelParams, latent_shape: list[int], text_width: int) -> AuraFlowTransformer2DModel:
        sizes = params.auraflow
        return AuraFlowTransformer2DModel(
            sample_size=latent_shape[-1],
            patch_size=sizes.patch_size,
            in_channels=latent_shape[0],
            out_channels=latent_shape[0],
            num_mmdit_layers=sizes.layers,
            num_single_dit_layers=sizes.single_layers,
            num_attention_heads=sizes.heads,
            attention_head_dim=sizes.head_dim,
            joint_attention_dim=text_width,
            caption_projection_dim=sizes.heads * sizes.head_dim,
            pos_embed_max_size=(latent_shape[-1] // sizes.patch_size) ** 2,
        )

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return [*model.joint_transformer_blocks, *model.single_transformer_blocks]  # type: ignore[arg-type,list-item,misc]

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        text = condition.text * condition.mask[..., None].to(condition.text.dtype)
        output: Tensor = model(xt, text, timestep / 1000).sample
        return output

    def pipeline(
        self, model: AuraFlowTransformer2DModel, vae: AutoencoderKL, text: TextEncoder, scheduler: SchedulerMixin
    ) -> AuraFlowPipeline:
        return AuraFlowPipeline(
            vae=vae,
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            transformer=model,
            scheduler=scheduler,
        )

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        return {"max_sequence_length": max_tokens}
