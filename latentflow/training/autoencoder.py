"""Trains the pipeline's own small autoencoder on the training pictures."""

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from latentflow import devices
from latentflow.data.square import SquarePictures
from latentflow.encoders import vae as vae_room
from latentflow.params import AutoencoderParams
from latentflow.progress import track

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """One point of the training curve."""

    step: int
    reconstruction: float
    kl: float


def train(params: AutoencoderParams, pictures: SquarePictures) -> tuple[AutoencoderKL, list[Curve]]:
    """Trains a VAE on the pictures by L1 + L2 + KL; also returns its curve."""
    accelerator = devices.accelerator(params.precision)
    vae = vae_room.build(
        params.resolution, params.channels, params.latent_channels, params.layers_per_block, params.seed
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(vae.parameters(), lr=params.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params.learning_rate, total_steps=params.steps, pct_start=0.1
    )
    vae, optimizer = accelerator.prepare(vae, optimizer)
    curve: list[Curve] = []
    for step in track(range(params.steps), "autoencoder", unit="steps"):
        generator = devices.step_generator(params.seed, "autoencoder", step)
        rows = torch.randint(len(pictures), (params.batch_size,), generator=generator).tolist()
        batch = pictures.at(rows).to(accelerator.device).contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            posterior = accelerator.unwrap_model(vae).encode(batch).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(batch.device)
            decoded = accelerator.unwrap_model(vae).decode(posterior.mean + posterior.std * noise).sample
        reconstruction = F.l1_loss(decoded.float(), batch) + 0.5 * F.mse_loss(decoded.float(), batch)
        kl = posterior.kl().mean() / batch[0].numel()
        accelerator.backward(reconstruction + params.kl_weight * batch[0].numel() / posterior.mean[0].numel() * kl)
        accelerator.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == params.steps - 1:
            curve.append(Curve(step, reconstruction.item(), kl.item()))
            log.debug("step %d reconstruction %.4f kl %.4f", step, curve[-1].reconstruction, curve[-1].kl)
    # Back to plain memory order on the CPU: saved weights and digests must not depend on the layout.
    trained: AutoencoderKL = accelerator.unwrap_model(vae).cpu().to(memory_format=torch.contiguous_format)
    return trained.eval().requires_grad_(False), curve
