"""Contrastive flow matching (Stoica et al. 2025, arXiv 2506.05350): also move away from another sample's target.

Taken from the paper: each sample's squared error, minus the weight times the squared distance of its output to the
target of another sample, noised for the same σ; 0.05 is the weight there. Samples without a caption are left out.
Different here: the other sample is the neighbour in the same forward pass, on the same device, so that nothing is sent
between devices; a pair is left out too when the neighbour's caption was dropped or is the same one; a loss weighting by
σ does not weigh it.
"""

from typing import TYPE_CHECKING

from latentflow.errors import LatentflowError
from latentflow.training.ideas import Forward, Idea

if TYPE_CHECKING:
    from torch import Tensor

    from latentflow.denoisers import Denoiser


class Contrastive(Idea):
    """The number is the weight. Below 1 the loss keeps a minimum: (target - weight * mean target) / (1 - weight)."""

    bounds = (0.0, 1.0)

    def __init__(self, value: float, denoiser: "Denoiser", seed: int) -> None:
        super().__init__(value, denoiser, seed)
        self._definition = denoiser.definition

    def before(self, step: int, places: "Tensor", size: int) -> None:
        if len(places) < 2:
            raise LatentflowError(
                "train.ideas.contrastive compares samples of one forward pass, and this one has 1: raise "
                "train.per_device_batch_size or train.batch_size."
            )

    def loss(self, seen: Forward) -> "Tensor":
        batch = seen.batch
        other = self._definition.target(batch.x0.roll(1, 0), batch.xT.roll(1, 0), batch.sigma)
        distance = (seen.output - other).square().flatten(1).mean(1)
        same = (batch.text == batch.text.roll(1, 0)).flatten(1).all(1)
        left_out = same | batch.dropped | batch.dropped.roll(1, 0)
        return -self.value * distance.masked_fill(left_out, 0).mean()
