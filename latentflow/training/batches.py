"""What a training step sees: which records, how noised, with or without caption; a function of (seed, step)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from latentflow.data.condition import Condition
from latentflow.data.encoded import EncodedSet, EncodedSplit
from latentflow.data.order import Order
from latentflow.devices import step_generator
from latentflow.diffusion import Definition, Density
from latentflow.errors import LatentflowError
from latentflow.params import TrainParams
from latentflow.training.ideas import Idea


@dataclass(frozen=True)
class Batch:
    """One process's part of a global batch, n samples: x_0 and x_T (n, c, h, w), σ (n,) float64, and the conditions.

    ``dropped`` (n,) bool says whose caption is the empty one; ``extra`` is what ideas read, in the dtypes stored.
    """

    x0: Tensor
    xT: Tensor
    sigma: Tensor
    condition: Condition
    dropped: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def text(self) -> Tensor:
        """(n, tokens, width)."""
        return self.condition.text

    @property
    def mask(self) -> Tensor:
        """(n, tokens) bool."""
        return self.condition.mask

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """On ``device``; latents, noise and text in ``dtype``."""

        def moved(tensor: Tensor) -> Tensor:
            wanted = dtype if tensor.dtype == torch.float32 else tensor.dtype
            return tensor.to(device, wanted, non_blocking=True)

        return self._each(moved)

    def parts(self, count: int) -> "list[Batch]":
        """The batch in ``count`` equal parts, in order."""
        return [self._each(partial(_chunk, count=count, number=number)) for number in range(count)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            change(self.x0),
            change(self.xT),
            change(self.sigma),
            self.condition.each(change),
            change(self.dropped),
            {key: change(tensor) for key, tensor in self.extra.items()},
        )


def _chunk(tensor: Tensor, count: int, number: int) -> Tensor:
    return tensor.chunk(count)[number]


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
    """Global batches by step. Every process draws the whole batch's randomness and takes its own ``positions``.

    So the samples and their noise are the same for any number of processes, and a resumed run needs no state.
    """

    def __init__(
        self,
        params: TrainParams,
        definition: Definition,
        encoded: EncodedSet,
        positions: slice = slice(None),
        ideas: Sequence[Idea] = (),
    ) -> None:
        """Raises LatentflowError where the set lacks what an idea reads."""
        self.params = params
        self.definition = definition
        self.density = density(params)
        self.positions = positions
        self.split: EncodedSplit = encoded.split("train")
        # Two, because each remembers where it was, and they are asked from two threads.
        self.order, self._coming = self._ordered(), self._ordered()
        self.remote = self.split.remote
        self.horizon = self.order.horizon
        self._extra = tuple(dict.fromkeys(key for idea in ideas for key in idea.reads))
        self._require(ideas, encoded)
        self._empty = encoded.empty

    def _ordered(self) -> Order:
        counts = tuple(bucket.counts for bucket in self.split.buckets)
        return Order(self.params.seed, self.params.batch_size, counts, self.params.shuffle_window)

    def _require(self, ideas: Sequence[Idea], encoded: EncodedSet) -> None:
        for idea in ideas:
            for key in idea.reads:
                if file := self.split.without(key):
                    raise LatentflowError(
                        f"train.ideas {idea} reads {key!r} of every record, and {file} of {encoded} holds no such key: "
                        "add it to the shards of latents, or leave the idea out."
                    )

    def at(self, step: int) -> Batch:
        """This process's samples of the global batch of ``step``, from 0."""
        params, size, mine = self.params, self.params.batch_size, self.positions
        generator = step_generator(params.seed, "train", step)
        bucket, rows = self.order.at(step)
        shape = (size, *self.split.buckets[bucket].shape)
        sigma = self.density.draw(self.definition, size, generator)
        drop = torch.rand(size, generator=generator) < params.caption_dropout
        flip = torch.rand(size, generator=generator) < 0.5
        noise = torch.randn(shape, generator=generator)
        choice = torch.rand(size, generator=generator)
        samples = self.split.samples(bucket, rows[mine], choice[mine], flip[mine], self._extra)
        x0 = samples.latents.float()
        if samples.logvar is not None:
            x0 = x0 + (samples.logvar.float() / 2).exp() * torch.randn(shape, generator=generator)[mine]
        # The rows were copied for this batch alone, so they may be written over.
        samples.text[drop[mine]] = self._empty.text
        samples.text_mask[drop[mine]] = self._empty.mask
        if samples.text_pooled is not None and self._empty.pooled is not None:
            samples.text_pooled[drop[mine]] = self._empty.pooled
        if samples.image is not None:
            unseen = torch.rand(size, generator=step_generator(params.seed, "image", step))
            samples.image[(unseen < params.adapter.image_dropout)[mine]] = 0
        condition = samples.condition.begun(x0).each(lambda told: told.float() if told.is_floating_point() else told)
        return Batch(x0, noise[mine], sigma[mine], condition, drop[mine], samples.extra)

    def ids(self, step: int) -> list[str]:
        """The ids of this process's records of a step; may be called from any thread."""
        bucket, rows = self._ordered().at(step)
        return self.split.ids(bucket, rows[self.positions])

    def fetch(self, step: int) -> Callable[[], None]:
        """What brings the shards that this process needs for ``step`` to this machine, for a thread to call.

        Steps are to be asked for in their order.
        """
        bucket, rows = self._coming.at(step)
        return partial(self.split.fetch, bucket, rows[self.positions])
