"""Two evaluations unit by unit: the mean difference of pairs and its interval, which is all the noise that is measured.

Both models met the same captions with the same seeds, so what makes a caption hard is in both values of a pair and
drops out of their difference. What is not in the interval: another training of the same model would differ too.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

# Shares: one unit's value is a multiple of 1 / pictures between 0 and 1.
_SHARES = re.compile(r"retrieval/.+/top\d+|memorised/.+")


@dataclass(frozen=True)
class Paired:
    """Mean of first - second over ``units`` common units, and the bounds of its interval."""

    difference: float
    low: float
    high: float
    units: int


def paired(
    metric: str, first: Mapping[str, float], second: Mapping[str, float], confidence: float = 0.95
) -> Paired | None:
    """The mean difference over the common units with Student's interval; None with fewer than two of them.

    Differences of shares are mostly 0, and Student's interval would be empty where all are: as Agresti and Min
    propose for paired shares (Simple improved confidence intervals for comparing matched proportions, Statistics in
    Medicine 24, 2005) the interval is that of the data with two pairs more, one for each side.
    """
    from scipy.special import stdtrit

    differences = [first[unit] - second[unit] for unit in first if unit in second]
    if len(differences) < 2:
        return None
    widened = [*differences, 1.0, -1.0] if _SHARES.fullmatch(metric) else differences
    count, middle = len(widened), fmean(widened)
    variance = math.fsum((value - middle) ** 2 for value in widened) / (count - 1)
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * math.sqrt(variance / count)
    return Paired(fmean(differences), middle - half, middle + half, len(differences))
