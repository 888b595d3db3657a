"""What a training shows of itself on the way: the held-out loss, and pictures of fixed captions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from latentflow import devices
from latentflow.data.condition import Condition
from latentflow.data.encoded import EncodedSet
from latentflow.denoisers import Denoiser
from latentflow.diffusion import Diffusion, sample
from latentflow.evaluation.heldout import HeldoutLoss, heldout_groups, heldout_loss, heldout_sigmas
from latentflow.params import TrainParams
from latentflow.training.parallel import Parallel

SAMPLE_STEPS = 16


class Preview:
    """Both are made with noise that is the same at every step. ``look`` is called before every prediction.

    The model is used as it is: the caller puts the averaged weights into it.
    """

    def __init__(
        self,
        params: TrainParams,
        parallel: Parallel,
        diffusion: Diffusion,
        denoiser: Denoiser,
        encoded: EncodedSet,
        look: Callable[[], None],
    ) -> None:
        self._params, self._parallel, self._diffusion = params, parallel, diffusion
        self._denoiser, self._encoded, self._look = denoiser, encoded, look
        self._device, self._dtype = parallel.device, parallel.dtype

    def heldout(self) -> HeldoutLoss:
        """The loss on the validation split."""
        return heldout_loss(
            self._predict,
            heldout_groups(self._encoded.split("validation"), self._device, self._dtype),
            self._denoiser.definition,
            heldout_sigmas(self._denoiser.definition),
            self._params.seed,
            self._parallel.share.largest_pass,
        )

    @torch.no_grad()
    def pictures(self) -> Tensor:
        """Latents, such as (n, c, h, w), of the fixed captions, on the CPU; of held-out records where images lead."""
        shape, prompts = self._prompts()
        generator = devices.step_generator(self._params.seed, "samples", 0)
        noise = torch.randn((len(prompts), *shape), generator=generator)
        prompts = prompts.to(self._device, self._dtype)
        empty = prompts.contrast(self._encoded.empty.to(self._device, self._dtype))

        scale = self._params.sample_guidance
        if self._denoiser.guidance is not None:
            prompts, empty = (one.guided(scale) for one in (prompts, empty))

        def predict(xt: Tensor, sigma: Tensor, told: Sequence[Tensor]) -> Tensor:
            return self._predict(xt, sigma, prompts.filled(told))

        guided = self._denoiser.family.guidance(scale)(predict, prompts.tensors(), empty.tensors())
        steps = self._diffusion.steps or SAMPLE_STEPS
        sigmas = self._diffusion.sigmas(steps, self._denoiser.tokens(shape))
        return sample(self._denoiser.definition, guided, noise.to(self._device, self._dtype), sigmas).float().cpu()

    def _prompts(self) -> tuple[tuple[int, ...], Condition]:
        """The shape of the latents, and the fixed captions with what else their pictures are led by."""
        prompts, shape = self._encoded.prompts, tuple(self._encoded.manifest.latent_shape)
        if self._params.adapter.by_images:
            return shape, self._led()
        if self._denoiser.family.led_by_frame:
            clips = self._clips(len(prompts))
            return tuple(clips.shape[1:]), prompts.begun(clips)
        return shape, prompts

    def _led(self) -> Condition:
        """The first held-out records of square pictures, as many as there are fixed captions."""
        encoded, split = self._encoded, self._encoded.split("validation")
        square = tuple(encoded.manifest.latent_shape)
        bucket = next((number for number, one in enumerate(split.buckets) if one.shape == square), None)
        if bucket is None:
            return encoded.prompts.each(lambda rows: rows[:0])
        rows = torch.arange(min(len(encoded.prompts), split.buckets[bucket].count))
        return split.samples(bucket, rows).condition

    def _clips(self, count: int) -> Tensor:
        """Latents of so many held-out clips of one size, again from the first where there are fewer."""
        split = self._encoded.split("validation")
        return split.samples(0, torch.arange(count) % split.buckets[0].count).latents.float()

    def _predict(self, xt: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self._look()
        with self._parallel.evaluation():
            return self._denoiser.predict(xt, sigma, condition).to(xt.dtype)
