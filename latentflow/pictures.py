"""Tensors to pictures, and pictures to a sheet."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor


def from_bytes(pictures: Tensor) -> Tensor:
    """Pictures (..., h, w, 3) uint8 to pixels (..., 3, h, w) float32 in [-1, 1], in the memory order that they had."""
    return pictures.movedim(-1, -3).float() / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] to uint8 of the same shape, the inverse of ``from_bytes``' scale."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte()


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (3, h, w), uint8 or in [-1, 1], to an RGB picture."""
    values = to_bytes(pixels) if pixels.is_floating_point() else pixels
    return Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy())


def to_strip(clip: Tensor, frames: int = 8) -> Image.Image:
    """A clip's pixels (3, f, h, w) as one picture: at most so many frames, evenly spread, side by side."""
    count = clip.shape[1]
    shown = [round(place * (count - 1) / max(1, min(frames, count) - 1)) for place in range(min(frames, count))]
    return to_image(clip[:, shown].permute(0, 2, 1, 3).flatten(2))


def grid(images: Sequence[Image.Image], columns: int, scale: int = 1, gap: int = 4) -> Image.Image:
    """Pictures of one size on a white sheet, row by row, enlarged ``scale`` times without smoothing."""
    width, height = images[0].width * scale, images[0].height * scale
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        enlarged = image.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
