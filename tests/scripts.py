"""One training step's loss as diffusers' own training scripts compute it, for each family's kind of model."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from latentflow.data.condition import Condition

TIMESTEPS = torch.tensor([3, 250, 998])


def unet_loss(pipeline: "DiffusionPipeline", x0: Tensor, noise: Tensor, told: "Condition") -> Tensor:
    """train_text_to_image.py and train_text_to_image_sdxl.py, at TIMESTEPS."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = scheduler.add_noise(x0, noise, TIMESTEPS)
    of_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x0, noise, TIMESTEPS) if of_velocity else noise
    added = {"time_ids": told.sizes.float(), "text_embeds": told.pooled} if told.pooled is not None else None
    predicted = pipeline.unet(noisy, TIMESTEPS, told.text, added_cond_kwargs=added, return_dict=False)[0]
    return F.mse_loss(predicted.float(), target.float(), reduction="mean")


def sd3_loss(pipeline: "DiffusionPipeline", x0: Tensor, noise: Tensor, told: "Condition") -> Tensor:
    """train_dreambooth_sd3.py with --precondition_outputs 0 and no weighting."""
    sigmas = (TIMESTEPS.float() / 1000)[:, None, None, None]
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    predicted = pipeline.transformer(
        hidden_states=noisy,
        timestep=TIMESTEPS.float(),
        encoder_hidden_states=told.text,
        pooled_projections=told.pooled,
        return_dict=False,
    )[0]
    return torch.mean(((predicted.float() - (noise - x0).float()) ** 2).reshape(len(x0), -1), 1).mean()


def flux_loss(pipeline: "DiffusionPipeline", x0: Tensor, noise: Tensor, told: "Condition") -> Tensor:
    """train_dreambooth_flux.py without weighting; --guidance_scale is what the condition says."""
    from diffusers import FluxPipeline

    sigmas = (TIMESTEPS.float() / 1000)[:, None, None, None]
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    count, channels, height, width = x0.shape
    predicted = pipeline.transformer(
        hidden_states=FluxPipeline._pack_latents(noisy, count, channels, height, width),
        timestep=TIMESTEPS.float() / 1000,
        guidance=told.guidance,
        pooled_projections=told.pooled,
        encoder_hidden_states=told.text,
        txt_ids=torch.zeros(told.text.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, x0.device, x0.dtype),
        return_dict=False,
    )[0]
    factor = pipeline.vae_scale_factor
    predicted = FluxPipeline._unpack_latents(predicted, height * factor, width * factor, factor)
    return torch.mean(((predicted.float() - (noise - x0).float()) ** 2).reshape(count, -1), 1).mean()


def qwen_image_loss(pipeline: "DiffusionPipeline", x0: Tensor, noise: Tensor, told: "Condition") -> Tensor:
    """train_dreambooth_lora_qwen_image.py without weighting."""
    from diffusers import QwenImagePipeline

    sigmas = (TIMESTEPS.float() / 1000)[:, None, None, None]
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    count, channels, height, width = x0.shape
    predicted = pipeline.transformer(
        hidden_states=QwenImagePipeline._pack_latents(noisy, count, channels, height, width),
        encoder_hidden_states=told.text,
        encoder_hidden_states_mask=told.mask.long(),
        timestep=TIMESTEPS.float() / 1000,
        img_shapes=[(1, height // 2, width // 2)] * count,
        return_dict=False,
    )[0]
    factor = pipeline.vae_scale_factor
    predicted = QwenImagePipeline._unpack_latents(predicted, height * factor, width * factor, factor).squeeze(2)
    return torch.mean(((predicted.float() - (noise - x0).float()) ** 2).reshape(count, -1), 1).mean()


def z_image_loss(pipeline: "DiffusionPipeline", x0: Tensor, noise: Tensor, told: "Condition") -> Tensor:
    """train_dreambooth_lora_z_image.py without weighting."""
    sigmas = (TIMESTEPS.float() / 1000)[:, None, None, None]
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    predicted = pipeline.transformer(
        list(noisy.unsqueeze(2).unbind(dim=0)),
        (1000 - TIMESTEPS.float()) / 1000,
        [text[mask] for text, mask in zip(told.text, told.mask, strict=True)],
        return_dict=False,
    )[0]
    predicted = -torch.stack(predicted, dim=0).squeeze(2)
    return torch.mean(((predicted.float() - (noise - x0).float()) ** 2).reshape(len(x0), -1), 1).mean()


def wan_loss(pipeline: "DiffusionPipeline", x0: Tensor, noise: Tensor, told: "Condition") -> Tensor:
    """Of no script in diffusers' repository, which has none for clips: the same formula around its pipeline's call."""
    sigmas = (TIMESTEPS.float() / 1000)[:, None, None, None, None]
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    predicted = pipeline.transformer(
        hidden_states=noisy, timestep=TIMESTEPS, encoder_hidden_states=told.text, return_dict=False
    )[0]
    return torch.mean(((predicted.float() - (noise - x0).float()) ** 2).reshape(len(x0), -1), 1).mean()


def wan_led_loss(pipeline: "DiffusionPipeline", x0: Tensor, noise: Tensor, told: "Condition") -> Tensor:
    """As WanImageToVideoPipeline calls it: the first frame is given, and is no part of the sum."""
    noisy, times = _given_first(x0, noise, patch=2)
    predicted = pipeline.transformer(
        hidden_states=noisy, timestep=times, encoder_hidden_states=told.text, return_dict=False
    )[0]
    return (predicted - (noise - x0))[:, :, 1:].square().sum() / x0.numel()


def _given_first(x0: Tensor, noise: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """x_t with the first frame of ``x0``, and every patch's timestep (n, patches)."""
    noisy = torch.lerp(x0, noise, (TIMESTEPS.float() / 1000)[:, None, None, None, None])
    noisy[:, :, 0] = x0[:, :, 0]
    mask = torch.ones(x0.shape[2:])
    mask[0] = 0
    return noisy, mask[:, ::patch, ::patch].flatten() * TIMESTEPS.float()[:, None]


def ltx_loss(pipeline: "DiffusionPipeline", x0: Tensor, noise: Tensor, told: "Condition") -> Tensor:
    """As ``wan_loss``."""
    noisy = torch.lerp(x0, noise, (TIMESTEPS.float() / 1000)[:, None, None, None, None])
    predicted = _ltx_answer(pipeline, noisy, TIMESTEPS.float(), told)
    return torch.mean(((predicted.float() - (noise - x0).float()) ** 2).reshape(len(x0), -1), 1).mean()


def ltx_led_loss(pipeline: "DiffusionPipeline", x0: Tensor, noise: Tensor, told: "Condition") -> Tensor:
    """As ``wan_led_loss``."""
    noisy, times = _given_first(x0, noise, patch=1)
    predicted = _ltx_answer(pipeline, noisy, times, told)
    return (predicted - (noise - x0))[:, :, 1:].square().sum() / x0.numel()


def _ltx_answer(pipeline: "DiffusionPipeline", noisy: Tensor, times: Tensor, told: "Condition") -> Tensor:
    frames, height, width = noisy.shape[2:]
    predicted = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy),
        encoder_hidden_states=told.text,
        timestep=times,
        encoder_attention_mask=told.mask.long(),
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(pipeline.vae_temporal_compression_ratio / 25, 32, 32),
        return_dict=False,
    )[0]
    return pipeline._unpack_latents(predicted, frames, height, width)


def flux_2_loss(pipeline: "DiffusionPipeline", x0: Tensor, noise: Tensor, told: "Condition") -> Tensor:
    """train_dreambooth_lora_flux2_klein.py without weighting."""
    from diffusers import Flux2KleinPipeline

    sigmas = (TIMESTEPS.float() / 1000)[:, None, None, None]
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    predicted = pipeline.transformer(
        hidden_states=Flux2KleinPipeline._pack_latents(noisy),
        timestep=TIMESTEPS.float() / 1000,
        guidance=None,
        encoder_hidden_states=told.text,
        txt_ids=Flux2KleinPipeline._prepare_text_ids(told.text),
        img_ids=Flux2KleinPipeline._prepare_latent_ids(noisy),
        return_dict=False,
    )[0]
    predicted = predicted.transpose(1, 2).reshape(x0.shape)
    return torch.mean(((predicted.float() - (noise - x0).float()) ** 2).reshape(len(x0), -1), 1).mean()
