"""What a training step sees: which records, how noised, with or without caption; a function of (seed, step)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.data.encoded import EncodedSet, EncodedSplit
from latentflow.devices import step_generator
from latentflow.diffusion import Definition, Density
from latentflow.params import TrainParams


@dataclass(frozen=True)
class Batch:
    """One process's part of a global batch, n samples: x_0 and x_T (n, c, h, w), σ (n,) float64, text and mask."""

    x0: Tensor
    xT: Tensor
    sigma: Tensor
    text: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


def density(params: TrainParams) -> Density:
    """The distribution of the training σ."""
    return Density(
        params.sigma_sampling,
        mean=params.sigma_mean,
        std=params.sigma_std,
        mode_scale=params.sigma_mode_scale,
        alpha=params.sigma_alpha,
        beta=params.sigma_beta,
        shift=params.sigma_shift,
        stratified=params.sigma_stratified,
    )


class Batches:
    """Global batches by step. Every process draws the whole batch's randomness and takes its own positions.

    So the samples and their noise are the same for any number of processes, and a resumed run needs no state.
    """

    def __init__(
        self, params: TrainParams, definition: Definition, encoded: EncodedSet, rank: int = 0, processes: int = 1
    ) -> None:
        self.params = params
        self.definition = definition
        self.density = density(params)
        self.positions = slice(rank, None, processes)
        self._split: EncodedSplit = encoded.split("train")
        self._empty_text, self._empty_mask = encoded.empty_text, encoded.empty_mask
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Batch:
        """This process's samples of the global batch of ``step``, from 0."""
        params, size = self.params, self.params.batch_size
        generator = step_generator(params.seed, "train", step)
        rows = self._rows(step * size, size)
        sigma = self.density.draw(self.definition, size, generator)
        drop = torch.rand(size, generator=generator) < params.caption_dropout
        flip = torch.rand(size, generator=generator) < 0.5
        noise = torch.randn((size, *self._split.latents.shape[1:]), generator=generator)
        mine = self.positions
        rows, drop = rows[mine], drop[mine]
        x0 = self._split.latents[rows]
        if self._split.latents_flipped is not None:
            x0 = torch.where(flip[mine, None, None, None], self._split.latents_flipped[rows], x0)
        text = torch.where(drop[:, None, None], self._empty_text, self._split.text[rows])
        mask = torch.where(drop[:, None], self._empty_mask, self._split.text_mask[rows])
        return Batch(x0.float(), noise[mine], sigma[mine], text.float(), mask)

    def _rows(self, start: int, count: int) -> Tensor:
        """Rows of samples start ... start + count - 1 of the endless sequence of shuffled epochs."""
        total = len(self._split)
        parts = []
        while count:
            epoch, offset = divmod(start, total)
            if epoch != self._epoch:
                generator = step_generator(self.params.seed, "order", epoch)
                self._epoch, self._order = epoch, torch.randperm(total, generator=generator)
            part = self._order[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)
