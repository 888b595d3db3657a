"""A frozen UNet that a trained part beside it leads by images."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import nn

from latentflow.denoisers.unet import UNetFamily


@dataclass(frozen=True)
class Images:
    """What is known of the images before training: what ``control`` is, "" for none.

    ``factor``: by how much a control picture is larger than the latents. ``width``: of the embeddings of reference
    images, 0 for none.
    """

    control: str
    factor: int
    width: int


class LedFamily(UNetFamily):
    """A family of UNets with such a part; its other sides are those of the family that it is mixed into."""

    @abstractmethod
    def join(self, unet: nn.Module, images: Images, seed: int) -> nn.Module:
        """The model with a new part beside the UNet, as training begins with it."""
