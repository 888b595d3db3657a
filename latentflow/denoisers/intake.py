"""What latents and captions a saved denoiser takes, read from its config before anything is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

Shape = Sequence[int]


@dataclass(frozen=True)
class Captions:
    """What is known of encoded captions: the text's width, the pooled text's (0: none), and how they were read.

    ``pipeline`` is the class of the pipeline whose way that is, "" for a model by itself, and ``models`` the digest of
    its text models.
    """

    width: int
    pooled_width: int = 0
    pipeline: str = ""
    models: str = ""


@dataclass(frozen=True)
class Intake:
    """Channels in and out, text width, side of a patch, and side of the grid of learned positions (0: any size).

    ``pooled_width``: of the pooled text, 0 where none is read.
    """

    channels: int
    outputs: int
    text_width: int
    patch: int = 1
    grid: int = 0
    pooled_width: int = 0

    @classmethod
    def read(
        cls, config: Mapping[str, Any], text_width: str, patch: int = 1, grid: int = 0, pooled_width: int = 0
    ) -> Self:
        """From a config of diffusers; ``text_width`` is the key under which the class keeps it."""
        channels = config["in_channels"]
        return cls(channels, config["out_channels"] or channels, config[text_width], patch, grid, pooled_width)

    def misfit(self, shapes: Sequence[Shape], captions: Captions) -> str:
        """Why latents of ``shapes`` with these captions do not fit, and what to do; or ""."""
        channels = shapes[0][0]
        if self.channels != channels:
            return (
                f"takes latents of {self.channels} channels, and the autoencoder makes {channels}; "
                "give the one with which it was trained in autoencoder.pretrained"
            )
        if self.outputs != channels:
            return f"predicts {self.outputs} channels for latents of {channels}, which is not trained here"
        for what, wanted, found in (
            ("captions", self.text_width, captions.width),
            ("pooled captions", self.pooled_width, captions.pooled_width),
        ):
            if wanted not in (0, found):
                return (
                    f"takes {what} of width {wanted}, and the text encoder gives {found}; "
                    "give the one with which it was trained in encode.text_encoder"
                )
        if bad := untiled(shapes, self.patch):
            return f"has patch_size {self.patch}, which does not divide latents of {bad}; change encode.bucket_step"
        side = self.grid * self.patch
        if self.grid and (large := next((shape for shape in shapes if max(shape[-2:]) > side), None)):
            return (
                f"has learned positions for latents up to {side}x{side}, and the encoded set has {size(large)}; "
                "encode smaller pictures"
            )
        return ""


def untiled(shapes: Sequence[Shape], patch: int) -> str:
    """The size of the first latents that patches do not tile, or ""."""
    return next((size(shape) for shape in shapes if any(side % patch for side in shape[-2:])), "")


def size(shape: Shape) -> str:
    """A shape as a message shows it, without the channels: 8x12, of clips 5x8x12."""
    return "x".join(map(str, shape[1:]))


def refuse_conditions(config: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raises ValueError where a saved denoiser must be told more than captions: one of ``keys`` is set."""
    if given := [f"{key} {config[key]}" for key in keys if config.get(key)]:
        raise ValueError(f"needs more conditions than captions ({', '.join(given)}), which are not trained here")
