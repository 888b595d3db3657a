"""The training loop of the seed: noise a sample, predict, regress on the target. Reads top to bottom."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from latentflow import devices
from latentflow.data.encoded import EncodedSet
from latentflow.denoisers import Denoiser
from latentflow.diffusion import Diffusion, Guidance, sample, weights
from latentflow.errors import LatentflowError
from latentflow.evaluation.heldout import HeldoutLoss, heldout_groups, heldout_loss, heldout_sigmas
from latentflow.params import TrainParams
from latentflow.progress import track
from latentflow.training import checkpoint, loader
from latentflow.training.batches import Batches
from latentflow.training.checkpoint import Progress
from latentflow.training.ema import EMA

SAMPLE_STEPS = 16
log = logging.getLogger(__name__)

Curves = dict[str, list[list[float]]]


@dataclass(frozen=True)
class Observer:
    """Where the loop reports: figures by step, and latents of the fixed captions by step."""

    metrics: Callable[[dict[str, float], int], None]
    samples: Callable[[Tensor, int], None]
    run_id: Callable[[], str]


def learning_rate(params: TrainParams, step: int) -> float:
    """The learning rate of ``step``, from 0: a linear rise, then cosine, one-cycle or constant.

    ``one_cycle`` rises along a cosine, as PyTorch's OneCycleLR; ``cosine`` rises along a line.
    """
    done = (step + 1) / params.steps
    if done < params.warmup_fraction:
        rise = done / params.warmup_fraction
        return params.learning_rate * (rise if params.schedule != "one_cycle" else (1 - math.cos(math.pi * rise)) / 2)
    if params.schedule == "constant":
        return params.learning_rate
    fall = (step / params.steps - params.warmup_fraction) / max(1e-9, 1 - params.warmup_fraction)
    return params.learning_rate * (1 + math.cos(math.pi * max(0.0, fall))) / 2


def train(
    params: TrainParams,
    diffusion: Diffusion,
    denoiser: Denoiser,
    encoded: EncodedSet,
    checkpoints: Path,
    fingerprint: str,
    start: Callable[[Progress | None], Observer],
) -> tuple[nn.Module, Curves]:
    """Trains ``denoiser.model`` from its newest checkpoint or the beginning.

    Returns the averaged model and the curves (train, validation, validation_by_sigma). ``start`` is told
    the progress that was restored and answers where to report. Raises LatentflowError when the loss is not finite.
    """
    accelerator = devices.accelerator(params.precision)
    bare = denoiser.model.to(accelerator.device)
    ema = EMA(bare, params.ema_decay)
    optimizer = torch.optim.AdamW(
        bare.parameters(), params.learning_rate, betas=(0.9, params.beta2), weight_decay=params.weight_decay, fused=True
    )
    progress = checkpoint.restore_latest(checkpoints, bare, ema, optimizer)
    observer = start(progress)
    curves: Curves = progress.curves if progress else {"train": [], "validation": [], "validation_by_sigma": []}
    model, prepared = accelerator.prepare(bare, optimizer)
    batches = Batches(params, diffusion.definition, encoded, accelerator.process_index, accelerator.num_processes)
    averaged = Denoiser(denoiser.family, ema.model, denoiser.definition)
    trained = Denoiser(denoiser.family, model, denoiser.definition)
    definition = denoiser.definition

    window = _Window(params)
    steps = range(progress.step if progress else 0, params.steps)
    with loader.ahead(batches, steps) as ready:
        for step, batch in track(zip(steps, ready, strict=True), "train", len(steps), "steps"):
            rate = learning_rate(params, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = batch.to(accelerator.device)
            xt = definition.add_noise(batch.x0, batch.xT, batch.sigma)
            with accelerator.autocast():
                output = trained.predict(xt, batch.sigma, batch.text, batch.mask)
            target = definition.target(batch.x0, batch.xT, batch.sigma)
            error = (output.float() - target).square().flatten(1).mean(1)
            loss = (weights(params.loss_weighting, definition, batch.sigma, params.min_snr_gamma) * error).mean()
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), params.clip_norm)
            prepared.step()
            prepared.zero_grad(set_to_none=True)
            ema.update(bare, step)

            done, last = step + 1, step + 1 == params.steps
            window.add(loss, norm)
            if done % params.log_every == 0 or last:
                figures = window.close(done, rate)
                curves["train"].append([done, figures["train/loss"], figures["train/gradient_norm"], rate])
                observer.metrics(figures, done)
            if done % params.validate_every == 0 or last:
                held_out = validate(averaged, encoded, params)
                curves["validation"].append([done, held_out.mean, held_out.half_width])
                curves["validation_by_sigma"] = [
                    [level.sigma, level.mean, level.half_width] for level in held_out.by_sigma
                ]
                observer.metrics({"validation/loss": held_out.mean}, done)
            if done % params.sample_every == 0 or last:
                observer.samples(draw_prompts(averaged, encoded, params, diffusion), done)
            if (done % params.checkpoint_every == 0 or last) and accelerator.is_main_process:
                _require_finite(loss.item(), done, params)
                state = Progress(done, fingerprint, observer.run_id(), curves)
                checkpoint.save(checkpoints, bare, ema, optimizer, state)
    return ema.model.cpu(), curves


def validate(denoiser: Denoiser, encoded: EncodedSet, params: TrainParams) -> HeldoutLoss:
    """The held-out loss on the validation split, with noise that is the same at every step."""
    split = encoded.split("validation")
    device = next(denoiser.model.parameters()).device
    return heldout_loss(
        denoiser.predict,
        heldout_groups(split, device),
        denoiser.definition,
        heldout_sigmas(denoiser.definition),
        params.seed,
        params.batch_size,
    )


@torch.no_grad()
def draw_prompts(denoiser: Denoiser, encoded: EncodedSet, params: TrainParams, diffusion: Diffusion) -> Tensor:
    """Latents (n, c, h, w) of the fixed captions, from noise that is the same at every step."""
    count, device = len(encoded.prompt_text), next(denoiser.model.parameters()).device
    noise = torch.randn(
        (count, *encoded.manifest.latent_shape), generator=devices.step_generator(params.seed, "samples", 0)
    )
    empty = encoded.empty_text.expand_as(encoded.prompt_text), encoded.empty_mask.expand_as(encoded.prompt_mask)
    prompts = encoded.prompt_text, encoded.prompt_mask
    conditions = [(text.float().to(device), mask.to(device)) for text, mask in (prompts, empty)]

    def predict(xt: Tensor, sigma: Tensor, condition: Sequence[Tensor]) -> Tensor:
        return denoiser.predict(xt, sigma, *condition)

    guided = Guidance(params.sample_guidance)(predict, *conditions)
    sigmas = diffusion.sigmas(diffusion.steps or SAMPLE_STEPS, denoiser.tokens(encoded.manifest.latent_shape))
    return sample(diffusion.definition, guided, noise.to(device), sigmas).cpu()


def _require_finite(loss: float, step: int, params: TrainParams) -> None:
    if not math.isfinite(loss):
        raise LatentflowError(
            f"the loss is {loss} at step {step}: lower train.learning_rate (now {params.learning_rate:g}) or "
            "train.clip_norm; checkpoints before it are whole."
        )


class _Window:
    """Mean loss, mean gradient norm and rate since it was last closed; one read from the device per window."""

    def __init__(self, params: TrainParams) -> None:
        self._params = params
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._since = time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        self._losses.append(loss.detach())
        self._norms.append(norm.detach())

    def close(self, step: int, rate: float) -> dict[str, float]:
        loss, norm = torch.stack(self._losses).mean().item(), torch.stack(self._norms).mean().item()
        _require_finite(loss, step, self._params)
        now = time.perf_counter()
        images = self._params.batch_size * len(self._losses)
        figures = {
            "train/loss": loss,
            "train/gradient_norm": norm,
            "train/learning_rate": rate,
            "train/images_per_second": images / (now - self._since),
        }
        self._losses, self._norms, self._since = [], [], now
        return figures
