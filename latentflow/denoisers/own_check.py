"""Whether a class of the user's own can be made and called as a denoiser is, found before anything is computed."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentflow.denoisers.intake import Shape
from latentflow.devices import seeded_weights
from latentflow.errors import LatentflowError
from latentflow.own_code import module_path
from latentflow.own_denoiser import find_class

GIVEN = ("latent_shape", "text_width")
"""What the constructor is told by keyword, before what ``model.own`` holds."""

CALL = "forward(xt, timestep, text, text_mask)"
SETTING, ARGUMENTS = "model.denoiser", "model.own"
_SAMPLES, _TOKENS = 2, 5


@dataclass(frozen=True)
class Choice:
    """A class as ``module:Class`` and what its constructor is given.

    ``latent_shape`` is that of a saved model; None where it is the first that there is.
    """

    name: str
    arguments: Mapping[str, Any]
    latent_shape: Shape | None = None


def check_class(choice: Choice, shapes: Sequence[Shape], text_width: int) -> None:
    """Makes the class and calls it on latents of ``shapes`` (c, h, w), without values wherever it can do without.

    Raises LatentflowError that names the parameter.
    """
    try:
        kind = find_class(choice.name)
    except ValueError as error:
        raise LatentflowError(f"{SETTING}: {error}.") from error
    module_path(choice.name)  # Source that cannot be copied is refused here.
    _check_constructor(kind, choice)
    _check_forward(kind, choice)
    try:
        _try("meta", kind, choice, shapes, text_width)
    except Exception:  # a class may well need values, which it then gets
        _try("cpu", kind, choice, shapes, text_width)


def _check_constructor(kind: type[nn.Module], choice: Choice) -> None:
    parameters = list(inspect.signature(kind).parameters.values())
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return
    named = {one.name: one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    if missing := [name for name in GIVEN if name not in named]:
        raise LatentflowError(
            f"{SETTING}: {choice.name} is made with latent_shape=(c, h, w) and text_width=w, and its __init__ takes no "
            f"{' and no '.join(missing)}."
        )
    if taken := [name for name in GIVEN if name in choice.arguments]:
        raise LatentflowError(f"{ARGUMENTS}: {taken[0]} is told by the encoded set; leave it out.")
    own = [name for name in named if name not in GIVEN]
    if unknown := [name for name in choice.arguments if name not in own]:
        raise LatentflowError(
            f"{ARGUMENTS}: {choice.name} takes no {', '.join(unknown)}; it takes {', '.join(own) or 'nothing'}."
        )
    if lacking := [name for name in own if named[name].default is named[name].empty and name not in choice.arguments]:
        raise LatentflowError(f"{ARGUMENTS}: {choice.name} needs {', '.join(lacking)}; give a value.")


def _check_forward(kind: type[nn.Module], choice: Choice) -> None:
    signature = inspect.signature(kind.forward)
    try:
        signature.bind(None, *GIVEN, *GIVEN)
    except TypeError:
        raise LatentflowError(f"{SETTING}: {choice.name} is called as {CALL}, and it has forward{signature}.") from None


def _try(device: str, kind: type[nn.Module], choice: Choice, shapes: Sequence[Shape], text_width: int) -> None:
    """One forward pass per shape."""
    first = tuple(choice.latent_shape or shapes[0])
    with torch.device(device), seeded_weights(0), torch.no_grad():
        try:
            model = kind(latent_shape=first, text_width=text_width, **choice.arguments).eval()
        except Exception as error:
            raise LatentflowError(
                f"{SETTING}: {choice.name} cannot be made for latents of {first}, captions of width {text_width} and "
                f"{ARGUMENTS} {dict(choice.arguments)}: {type(error).__name__}: {error}"
            ) from error
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise LatentflowError(f"{SETTING}: {choice.name} has no parameters, so there is nothing to train.")
        for shape in shapes:
            _call(model, choice, torch.zeros(_SAMPLES, *shape), text_width)


def _call(model: nn.Module, choice: Choice, xt: Tensor, text_width: int) -> None:
    text, mask = torch.zeros(_SAMPLES, _TOKENS, text_width), torch.ones(_SAMPLES, _TOKENS, dtype=torch.bool)
    try:
        output = model(xt, torch.full((_SAMPLES,), 500.0), text, mask)
    except Exception as error:
        raise LatentflowError(
            f"{SETTING}: {choice.name} fails on latents of {tuple(xt.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(output, Tensor):
        raise LatentflowError(
            f"{SETTING}: {choice.name} gives a {type(output).__name__}; it must give a tensor of x_t's shape."
        )
    if output.shape != xt.shape:
        raise LatentflowError(
            f"{SETTING}: {choice.name} gives {tuple(output.shape)} for latents of {tuple(xt.shape)}; it must give the "
            "same shape."
        )
