"""What a denoiser is told besides x_t and σ, for n samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """``text`` (n, tokens, width) with its padding ``mask`` (n, tokens) bool, and what only some families read.

    ``pooled`` (n, width): the caption as one vector. ``sizes`` (n, 6): height and width of the original, top and left
    of the crop, height and width of the picture, in pixels. ``guidance`` (n,): the guidance scale that a
    guidance-distilled model is told. ``control`` (n, 3, h, w) uint8: the picture by which a ControlNet leads, of the
    size of the picture. ``image`` (n, width): the embedding of a reference image, zeros for none. ``frame``
    (n, c, 1, h, w): the latents of a clip's first frame. Each is None where
    nothing gives it.
    """

    text: Tensor
    mask: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    guidance: Tensor | None = None
    control: Tensor | None = None
    image: Tensor | None = None
    frame: Tensor | None = None

    def __len__(self) -> int:
        return len(self.text)

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """``change`` done to every tensor that is there."""
        return self.filled([change(tensor) for tensor in self.tensors()])

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """On ``device``; what is floating point in ``dtype``."""
        return self.each(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def tensors(self) -> list[Tensor]:
        """Those that are there, in their order; ``filled`` takes such a list back."""
        return [tensor for field in fields(self) if (tensor := getattr(self, field.name)) is not None]

    def filled(self, tensors: Sequence[Tensor]) -> Self:
        """A condition of the same kind with other values."""
        there = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return type(self)(**dict(zip(there, tensors, strict=True)))

    def guided(self, scale: float) -> Self:
        """With that guidance scale told to every sample."""
        return replace(self, guidance=torch.full((len(self),), scale, device=self.text.device))

    def contrast(self, empty: Self) -> Self:
        """What classifier-free guidance moves away from: the ``empty`` caption, no reference image, all else the same.

        ``empty`` is a single row.
        """
        image = None if self.image is None else torch.zeros_like(self.image)
        return replace(empty.rows(len(self)), control=self.control, image=image, frame=self.frame)

    def begun(self, x0: Tensor) -> Self:
        """With the first frame of clips ``x0`` (n, c, f, h, w); of pictures, which have none, as it is."""
        return replace(self, frame=x0[:, :, :1]) if x0.ndim == 5 else self

    def rows(self, count: int) -> Self:
        """Of a single row, ``count`` times the same."""
        return self.each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))


def square(count: int, resolution: int) -> Tensor:
    """``Condition.sizes`` of uncropped squares of that resolution, int32 (count, 6)."""
    return torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]], dtype=torch.int32).expand(count, 6)
