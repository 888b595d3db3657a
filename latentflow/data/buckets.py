"""Aspect-ratio buckets: the few sizes of about equal area that pictures are scaled and cropped to."""

import numpy as np


def sizes(resolution: int, step: int, min_ratio: float, max_ratio: float) -> list[tuple[int, int]]:
    """All (height, width) in multiples of ``step``, of at most ``resolution``² pixels and as many as fit.

    The ratio is width / height. Step 0 gives the one square. In the order of their ratios.
    """
    if step == 0:
        return [(resolution, resolution)]
    area = resolution * resolution
    found = set()
    for side in range(step, resolution + 1, step):
        other = area // side // step * step
        found |= {(side, other), (other, side)}
    kept = [(height, width) for height, width in found if min_ratio <= width / height <= max_ratio]
    return sorted(kept, key=lambda size: (size[1] / size[0], size))


def nearest(heights: np.ndarray, widths: np.ndarray, buckets: list[tuple[int, int]]) -> np.ndarray:
    """Per picture the number of the bucket whose ratio is nearest in logarithm; the first of equals."""
    ratios = np.log([width / height for height, width in buckets])
    wanted = np.log(widths / heights)
    # Both neighbours in the sorted ratios, so that a million pictures need no table of all distances.
    right = np.clip(np.searchsorted(ratios, wanted), 1, max(1, len(ratios) - 1))
    left = right - 1
    right = np.minimum(right, len(ratios) - 1)
    nearest_one: np.ndarray = np.where(np.abs(ratios[right] - wanted) < np.abs(ratios[left] - wanted), right, left)
    return nearest_one
