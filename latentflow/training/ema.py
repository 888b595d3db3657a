"""The averaged weights with which the finished model draws."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from latentflow.training.averages import gamma

Decay = Callable[[int], float]


def warmed_up(decay: float) -> Decay:
    """The decay of optimizer step ``step``, from 0: it rises to its value over the first steps."""
    return lambda step: min(decay, (1 + step) / (10 + step))


def power(length: float) -> Decay:
    """The decay whose average weighs update τ like τ^γ (Karras et al. 2024, arXiv 2312.02696).

    ``length`` is the profile's deviation as a share of the whole training.
    """
    exponent = gamma(length) + 1
    return lambda step: (1 - 1 / (step + 1)) ** exponent


class EMA:
    """A moving average of the trained parameters, beside them: fp32, on the same device, sharded as they are."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: Decay) -> None:
        self.parameters = dict(parameters)
        self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._decay = decay
        self._pairs = [local(average) for average in self.averages.values()], [*map(local, self.parameters.values())]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the parameters after optimizer step ``step``, from 0."""
        averages, parameters = self._pairs
        torch._foreach_lerp_(averages, parameters, 1 - self._decay(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the averages; parameter by parameter, so that no third copy is needed."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the parameters' values with the averages'."""
        for average, parameter in zip(*self._pairs, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; any other tensor itself."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
