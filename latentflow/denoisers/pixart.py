"""PixArtTransformer2DModel, a DiT with cross-attention, in a PixArtAlphaPipeline."""

from typing import Any

from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtTransformer2DModel, SchedulerMixin
from torch import Tensor, nn

from latentflow.encoders.text import TextEncoder
from latentflow.params import ModelParams


class PixArt:
    """A DiT whose patches attend to each other and, masked, to the caption (Chen et al. 2023)."""

    subfolder = "transformer"
    model_class = "PixArtTransformer2DModel"
    pipeline_class = "PixArtAlphaPipeline"
    flow_pipeline = False

    def build(self, params: ModelParams, latent_shape: list[int], text_width: int) -> PixArtTransformer2DModel:
        sizes = params.pixart
        check_patches(sizes.patch_size, latent_shape)
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

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        output: Tensor = model(
            xt,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
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


def check_patches(patch_size: int, latent_shape: list[int]) -> None:
    """Raises ValueError where patches do not tile the latents."""
    if any(side % patch_size for side in latent_shape[1:]):
        raise ValueError(f"patch_size {patch_size} does not divide {latent_shape[1]}x{latent_shape[2]}")
