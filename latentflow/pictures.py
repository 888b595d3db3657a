"""Tensors to pictures, and pictures to a sheet."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels (n, 3, h, w) in [-1, 1] to RGB pictures."""
    bytes_ = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in bytes_]


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
