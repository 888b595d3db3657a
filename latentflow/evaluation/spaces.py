"""In what pictures are compared: plain pixels always, and the networks whose weights are given."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from latentflow.evaluation import retrieval
from latentflow.evaluation.metrics import pixels8
from latentflow.evaluation.reconstruction import Lpips
from latentflow.evaluation.vision import VisionModel
from latentflow.params import WeightsParams


@dataclass(frozen=True)
class Space:
    """Features (n, d) of pictures (n, 3, h, w) uint8, under a name.

    ``frechet`` and ``kernel`` are the names of the distances in it, which are the field's own only where these
    features are what the field means. ``needed``: with fewer pictures the Fréchet distance is mostly its own bias.
    """

    name: str
    about: str
    features: Callable[[Tensor], Tensor]
    frechet: str
    kernel: str
    needed: int


PIXELS8 = Space(
    "pixels8",
    "pixels8: RGB averaged over an 8x8 grid, 192 values in [0, 1]",
    pixels8,
    "frechet_pixels8",
    "kernel_pixels8",
    5_000,
)
PIXELS16 = Space(
    "pixels16",
    "pixels16: RGB averaged over a 16x16 grid",
    retrieval.features,
    "frechet_pixels16",
    "kernel_pixels16",
    5_000,
)


@dataclass(frozen=True)
class Networks:
    """What ``evaluate.weights`` names, loaded before anything is drawn, so that a wrong path costs nothing."""

    spaces: list[Space]
    clip: VisionModel | None
    lpips: Lpips | None

    @classmethod
    def load(cls, weights: WeightsParams) -> "Networks":
        """Raises LatentflowError that names the parameter whose weights cannot be used."""
        from latentflow.evaluation import inception, lpips

        spaces = [PIXELS8]
        if weights.inception:
            network = inception.load(Path(weights.inception), "evaluate.weights.inception")
            spaces.append(_space("inception", lambda pictures: inception.features(network, pictures), "fid", "kid"))
        if weights.dinov2:
            dinov2 = VisionModel(weights.dinov2, "evaluate.weights.dinov2")
            spaces.append(_space("dinov2", dinov2.features, "fd_dinov2", "kernel_dinov2"))
        clip = VisionModel(weights.clip, "evaluate.weights.clip") if weights.clip else None
        if clip is not None:
            clip.require_text()
        look = lpips.load(Path(weights.lpips), "evaluate.weights.lpips") if weights.lpips else None
        return cls(spaces, clip, look)

    @property
    def eyes(self) -> Space:
        """Where likeness is judged for diversity and memorisation: the best that is there."""
        by_name = {space.name: space for space in self.spaces}
        return by_name.get("dinov2") or by_name.get("inception") or PIXELS16


def _space(name: str, features: Callable[[Tensor], Tensor], frechet: str, kernel: str) -> Space:
    return Space(name, f"{name}: the network of evaluate.weights.{name}", features, frechet, kernel, 10_000)
