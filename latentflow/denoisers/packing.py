"""Latents as the sequence of their 2x2 patches, as transformers that take tokens want them."""

from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """(n, c, h, w) with even h and w to (n, h/2·w/2, 4c); within a patch the channel comes first."""
    patches = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    tokens: Tensor = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return tokens


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The way back, to latents of that height and width."""
    patches = tokens.unflatten(1, (height // 2, width // 2)).unflatten(3, (-1, 2, 2))
    latents: Tensor = patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return latents
