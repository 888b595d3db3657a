"""The pipeline of a user's own denoiser, for which diffusers has none.

It travels with models that need it; with plain diffusers a folder is opened by this class's ``from_pretrained``.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latentflow.diffusion import Guidance
from latentflow.own_denoiser import OwnDenoiser


class OwnDenoiserPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draws pictures from captions: one text model, an ``OwnDenoiser`` and a VAE of pictures."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        vae: ModelMixin,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        transformer: OwnDenoiser,
        scheduler: SchedulerMixin,
        factor: int = 8,
    ) -> None:
        """``factor``: by how much the VAE shrinks pictures."""
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
        )
        self.register_to_config(factor=factor)
        self.image_processor = VaeImageProcessor(vae_scale_factor=factor)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 24,
        guidance_scale: float = 3.0,
        generator: "Generator | list[Generator] | None" = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """One picture per prompt; without sizes of those that it was trained on.

        A ``guidance_scale`` of 1 is none. ``latents`` (n, c, h, w) are x_T of unit variance in place of drawn ones;
        ``output_type`` latent gives x_0 undecoded.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        others = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        device, shape = self._execution_device, self._latent_shape(height, width)
        conditional = self._encode(prompts)
        unconditional = self._encode(others) if guidance_scale != 1 else None
        if latents is None:
            latents = randn_tensor((len(prompts), *shape), generator=generator, device=device, dtype=torch.float32)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        told = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        xt = latents.to(device, torch.float32) * self.scheduler.init_noise_sigma
        for timestep in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(xt, timestep)
            output = self._predict(scaled, timestep, conditional)
            if unconditional:
                output = Guidance(guidance_scale).combine(output, self._predict(scaled, timestep, unconditional))
            xt = self.scheduler.step(output, timestep, xt, **told).prev_sample
        images: Any = xt if output_type == "latent" else self._decode(xt, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images)

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        channels, *sides = self.transformer.config.latent_shape
        factor = self.config.factor
        given = [
            side if pixels is None else pixels // factor for side, pixels in zip(sides, (height, width), strict=True)
        ]
        if any(pixels is not None and pixels % factor for pixels in (height, width)):
            raise ValueError(f"height {height} and width {width} must be multiples of {factor}")
        return channels, given[0], given[1]

    def _encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Hidden states (n, tokens, width) and their mask, as the encode step computes them."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        tokens = tokens.to(self._execution_device)
        hidden = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return hidden, tokens.attention_mask.bool()

    def _predict(self, xt: Tensor, timestep: Tensor, condition: tuple[Tensor, Tensor]) -> Tensor:
        """The model's output in float32; weights in less compute by autocast, which leaves timesteps as they are."""
        text, mask = condition
        dtype: torch.dtype = self.transformer.dtype
        at = torch.as_tensor(timestep, dtype=torch.float32, device=xt.device).expand(len(xt))
        with torch.autocast(xt.device.type, dtype, enabled=dtype != torch.float32):
            output: Tensor = self.transformer(xt, at, text.float(), mask)
        return output.float()

    def _decode(self, x0: Tensor, output_type: str) -> Any:
        config = self.vae.config
        latents = x0 / config.get("scaling_factor", 1.0) + (config.get("shift_factor") or 0.0)
        pixels = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return self.image_processor.postprocess(pixels.float(), output_type=output_type)
