"""Which way each metric is better, so that a gate and a comparison read the same arrow. Needs no torch."""

import re

HIGHER = (
    r"retrieval/.+/top[15]",
    r"precision_.+",
    r"recall_.+",
    r"clip_score",
    r"vae/(psnr|ssim)",
)
LOWER = (
    r"retrieval/.+/median_rank",
    r"(frechet|kernel)_.+",
    r"fid",
    r"kid",
    r"fd_.+",
    r"cmmd",
    r"heldout_loss",
    r"heldout_loss_by_sigma/.+",
    r"memorised/(test|free)",
    r"vae/lpips",
    r"seconds_.+",
    r"memory_.+",
)
_HIGHER, _LOWER = (re.compile("|".join(names)) for names in (HIGHER, LOWER))


def direction(name: str) -> int:
    """1 where a higher value of the metric is better, -1 where a lower one is, 0 where neither is.

    Bounds of intervals, what guessing reaches, thresholds and the diversity (which is best near that of the real
    pictures) have no direction.
    """
    if name.endswith(("_low", "_high", "_half_width")):
        return 0
    return int(bool(_HIGHER.fullmatch(name))) - int(bool(_LOWER.fullmatch(name)))
