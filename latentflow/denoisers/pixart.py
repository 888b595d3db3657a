"""PixArtTransformer2DModel, a DiT with cross-attention, in a PixArtAlphaPipeline."""

from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtTransformer2DModel, SchedulerMixin
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import NewFamily
from latentflow.denoisers.intake import Intake, refuse_conditions
from latentflow.encoders.text import TextEncoder
from latentflow.params import ModelParams


class PixArt(NewFamily):
    """A DiT whose patches attend to each other and, masked, to the caption (Chen et al. 2023)."""

    model_class = "PixArtTransformer2DModel"
    pipeline_class = "PixArtAlphaPipeline"
    # The feed-forward layers too, as in PixArt's own trainer.
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    # diffusers 0.42 has no loader for this class.
    loads_adapters = False

    def patch_size(self, params: ModelParams) -> int:
        return params.pixart.patch_size

    def intake(self, config: Mapping[str, Any]) -> Intake:
        conditions = config.get("use_additional_conditions")
        if conditions is None:  # What the class then decides by.
            conditions = config["sample_size"] == 128
        refuse_conditions({"use_additional_conditions": conditions}, ["use_additional_conditions"])
        return Intake.read(config, "caption_channels", config["patch_size"])

    def build(self, params: ModelParams, latent_shape: list[int], text_width: int) -> PixArtTransformer2DModel:
        sizes = params.pixart
        return PixArtTransformer2DModel(
            sample_size=latent_shape[-1],
            patch_size=sizes.patch_size,
            in_channels=latent_shape[0],
            out_channels=latent_shape[0],
            num_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            attention_head_dim=sizes.head_dim,
            cross_attention_dim=sizes.heads * sizes.head_dim,
            caption_channels=text_width,
            use_additional_conditions=False,
        )

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.transformer_blocks)  # type: ignore[arg-type,list-item,misc]

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        output: Tensor = model(
            xt,
            encoder_hidden_states=condition.text,
            encoder_attention_mask=condition.mask,
            timestep=timestep,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        return output

    def pipeline(
        self, model: PixArtTransformer2DModel, vae: AutoencoderKL, text: TextEncoder, scheduler: SchedulerMixin
    ) -> PixArtAlphaPipeline:
        return PixArtAlphaPipeline(
            vae=vae,
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            transformer=model,
            scheduler=scheduler,
        )

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        return {"max_sequence_length": max_tokens, "clean_caption": False, "use_resolution_binning": False}
