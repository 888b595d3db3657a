"""Edges of pictures by Canny's filter (Canny 1986), white on black: the control picture that needs no model."""

import torch
from torch import Tensor
from torch.nn import functional as F

VERSION = 1
# Levels per pixel above which a slope begins an edge, and above which it goes on.
BEGINS, GOES_ON = 16.0, 8.0
_BLUR = torch.tensor([0.0545, 0.2442, 0.4026, 0.2442, 0.0545])  # a Gaussian of one pixel
_SLOPE = torch.tensor([-0.5, 0.0, 0.5])
_SMOOTH = torch.tensor([0.25, 0.5, 0.25])


def edges(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) uint8 to their edges, 0 or 255, of the same shape and type, equal in all channels.

    The slope of a pixel is that of the channel in which it is steepest, so that colours of equal lightness have edges.
    """
    blurred = _filtered(pictures.float(), _BLUR, _BLUR)
    across, down = _filtered(blurred, _SMOOTH, _SLOPE), _filtered(blurred, _SLOPE, _SMOOTH)
    steepest = across.hypot(down).argmax(1, keepdim=True)
    across, down = across.gather(1, steepest), down.gather(1, steepest)
    slope = across.hypot(down)
    slope = slope * _ridge(slope, across, down)
    lines = _connected(slope > BEGINS, slope > GOES_ON)
    return (lines.byte() * 255).expand_as(pictures).contiguous()


def _filtered(pictures: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Each channel by a separable filter; beyond the border its pixels go on."""
    count, channels, height, width = pictures.shape
    kernel = vertical[:, None] * horizontal
    rows, columns = len(vertical) // 2, len(horizontal) // 2
    padded = F.pad(pictures.reshape(-1, 1, height, width), (columns, columns, rows, rows), mode="replicate")
    return F.conv2d(padded, kernel[None, None]).reshape(count, channels, height, width)


def _ridge(slope: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Where the slope is no less than that of both neighbours along its direction, of which eight are told apart."""
    padded = F.pad(slope, (1, 1, 1, 1))
    height, width = slope.shape[-2:]
    octant = (torch.atan2(down, across) / (torch.pi / 4)).round().long() % 4
    found = torch.zeros_like(slope, dtype=torch.bool)
    for direction, (row, column) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        after = padded[..., 1 + row : 1 + row + height, 1 + column : 1 + column + width]
        before = padded[..., 1 - row : 1 - row + height, 1 - column : 1 - column + width]
        # Of two equal ones the first alone, or an edge between two pixels would be a double line.
        found |= (octant == direction) & (slope >= after) & (slope > before)
    return found


def _connected(begun: Tensor, possible: Tensor) -> Tensor:
    """What of ``possible`` is connected with ``begun``."""
    while True:
        grown = (F.max_pool2d(begun.float(), 3, stride=1, padding=1) > 0) & possible | begun
        if torch.equal(grown, begun):
            return grown
        begun = grown
