"""Latents in the denoiser's scale: folding the statistics changes their scale and nothing else."""

import torch

from latentflow.encoders import vae as vae_room


def test_folded_statistics_change_the_scale_only() -> None:
    vae = vae_room.build(16, [8, 8], 4, 1, seed=0).eval()
    with torch.no_grad():
        vae.quant_conv.bias.copy_(torch.linspace(-2, 2, 8))
    pixels = torch.rand((6, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = vae_room.encode(vae, pixels)
    decoded, spread = vae_room.decode(vae, latents), vae.encode(pixels).latent_dist.std.detach()
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    vae_room.fold_statistics(vae, mean, std)
    folded = vae_room.encode(vae, pixels)
    shape = (1, -1, 1, 1)
    assert torch.allclose(folded, (latents - mean.reshape(shape)) / std.reshape(shape), atol=1e-5)
    assert torch.allclose(vae_room.decode(vae, folded), decoded, atol=1e-5)
    assert torch.allclose(vae.encode(pixels).latent_dist.std, spread / std.reshape(shape), atol=1e-5)


def test_scale_and_shift_of_a_given_vae_apply() -> None:
    vae = vae_room.build(16, [8, 8], 4, 1, seed=0).eval()
    pixels = torch.zeros((1, 3, 16, 16))
    plain = vae_room.encode(vae, pixels)
    vae.register_to_config(scaling_factor=2.0, shift_factor=0.5)
    scaled = vae_room.encode(vae, pixels)
    assert torch.allclose(scaled, (plain - 0.5) * 2)
    assert torch.allclose(vae_room.decode(vae, scaled), vae.decode(plain).sample.clamp(-1, 1), atol=1e-5)
