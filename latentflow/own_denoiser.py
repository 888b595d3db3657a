"""A user's own torch module as a diffusers model, so that it has a config.json and weights in safetensors.

It travels with models that need it, beside the user's module itself.
"""

import importlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentflow.own_code import code_digest, module_path


class OwnDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """``own``: an instance of the class at ``own_class``, made by ``latent_shape``, ``text_width`` and ``arguments``.

    ``source`` is the digest of the code with which it was trained; other code is refused, for its weights would be
    another model's.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, own_class: str, source: str, latent_shape: Sequence[int], text_width: int, arguments: dict[str, Any]
    ) -> None:
        super().__init__()
        self.own = trained_class(own_class, source)(
            latent_shape=tuple(latent_shape), text_width=text_width, **arguments
        )

    def forward(self, xt: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """The model's output, of x_t's shape (n, c, h, w).

        ``timestep`` (n,) float in thousandths, ``text`` (n, tokens, width), ``text_mask`` (n, tokens) bool, True where
        there is a word and not padding.
        """
        output: Tensor = self.own(xt, timestep, text, text_mask)
        return output

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated parts: what the class has in a ModuleList ``blocks``, else all of it."""
        found = getattr(self.own, "blocks", None)
        return list(found) if isinstance(found, nn.ModuleList) and len(found) else [self.own]

    def enable_gradient_checkpointing(self) -> None:
        """Computes each of the blocks again in the backward pass instead of keeping what it computed."""
        for block in self.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def trained_class(name: str, source: str) -> type[nn.Module]:
    """The class with which a model was trained. Raises ValueError where it is not there or its code is another."""
    kind = find_class(name)
    if code_digest(name) != source:
        raise ValueError(f"{name}: the code in {module_path(name)} is not that with which this model was trained")
    return kind


def find_class(name: str) -> type[nn.Module]:
    """The class at ``module:Class``, imported. Raises ValueError that says what was found instead."""
    module, _, attribute = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(f"{name}: the module cannot be imported ({error})") from error
    except AttributeError:
        raise ValueError(f"{name}: the module {module} has no {attribute}") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{name} is no subclass of torch.nn.Module")
    return found
