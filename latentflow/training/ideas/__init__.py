"""Training ideas: what a paper adds to the loop, one file each, with one number.

Every file of this folder is an idea of its name, whose class is that name in CamelCase. Nothing here imports torch when
it is imported, so that parameters are checked where there is none.
"""

import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from latentflow.errors import LatentflowError
from latentflow.params import require_module

if TYPE_CHECKING:
    from torch import Tensor, nn

    from latentflow.denoisers import Denoiser
    from latentflow.training.batches import Batch


@dataclass(frozen=True)
class Forward:
    """One forward pass of n samples: the model's output and the target that it is compared with, both (n, c, h, w)."""

    step: int
    batch: "Batch"
    output: "Tensor"
    target: "Tensor"


class Idea:
    """An idea with its number. By itself it does nothing; override what is needed.

    ``reads`` names tensors of the encoded latents, per record, that arrive in ``batch.extra``. The number lies between
    ``bounds`` and is neither. ``module`` is trained along with the model, kept in the checkpoints and not delivered.
    Random numbers come from ``devices.step_generator(seed, <name>, step)`` for the whole global batch.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    module: "nn.Module | None" = None

    def __init__(self, value: float, denoiser: "Denoiser", seed: int) -> None:
        """May hang hooks on ``denoiser.model``, which act only while it is in training mode."""
        self.value = value
        self.seed = seed

    def __str__(self) -> str:
        """Its name in train.ideas."""
        kind = type(self)
        package, _, name = kind.__module__.rpartition(".")
        return name if package == __name__ else f"{kind.__module__}:{kind.__qualname__}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Idea":
        """Itself: a copy of the model, such as its average, has the hooks, and no idea of its own."""
        return self

    def before(self, step: int, places: "Tensor", size: int) -> None:
        """Told before each forward pass; ``places`` (n,) int64 are its samples' positions in the batch of ``size``."""

    def loss(self, seen: Forward) -> "Tensor | None":
        """What is added to the loss, a scalar: the mean over the n samples, weighted by the idea's number."""
        return None


def names() -> tuple[str, ...]:
    """The ideas that are there, by the files in this folder."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def check(ideas: Mapping[str, float]) -> None:
    """Raises ValueError for a name that is not there or a number out of bounds; runs no code of the user's."""
    for name, value in ideas.items():
        module, colon, _ = name.partition(":")
        if colon:
            require_module(module)
        else:
            _check_bounds(name, _find(name), value)


def build(ideas: Mapping[str, float], denoiser: "Denoiser", seed: int) -> list[Idea]:
    """The ideas for a model, in the order of their names.

    Raises LatentflowError for a name that is not there, a number out of bounds, or a model that does not fit.
    """
    kinds = {}
    try:
        for name in sorted(ideas):
            kinds[name] = _find(name)
            _check_bounds(name, kinds[name], ideas[name])
    except ValueError as error:
        raise LatentflowError(f"train.ideas: {error}.") from error
    return [kind(ideas[name], denoiser, seed) for name, kind in kinds.items()]


def _find(name: str) -> type[Idea]:
    """The class of an idea. Raises ValueError that says what was found instead."""
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in names():
            raise ValueError(f"{name!r} is neither one of {', '.join(names())} nor your own as module:Class")
        module, attribute = f"{__name__}.{name}", name.title().replace("_", "")
    try:
        found: Any = getattr(import_module(module), attribute)
    except ImportError as error:
        raise ValueError(f"{name}: the module cannot be imported ({error})") from error
    except AttributeError:
        raise ValueError(f"{name}: the module {module} has no {attribute}") from None
    if not (isinstance(found, type) and issubclass(found, Idea)):
        raise ValueError(f"{name} is no subclass of latentflow.training.ideas.Idea")
    return found


def _check_bounds(name: str, kind: type[Idea], value: float) -> None:
    low, high = kind.bounds
    if not low < value < high:
        raise ValueError(f"{name} needs a number above {low:g} and below {high:g}, found {value:g}")
