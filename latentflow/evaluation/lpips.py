"""LPIPS: how different two pictures look to AlexNet's layers, weighed as people judged. Zhang et al. 2018.

The safetensors hold torchvision's AlexNet features (`features.0.weight`, ...) and the five weighings of the lpips
package's version 0.1 (`lin0.model.1.weight`, ...); docs/evaluation.md says how to make the file.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from latentflow.devices import best_device
from latentflow.errors import LatentflowError

FILE = "model.safetensors"
SMALLEST = 32
"""Smaller pictures vanish in AlexNet's pools."""

_WIDTHS = (64, 192, 384, 256, 256)
# Mean and deviation of ImageNet's pictures for pixels in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Pixels (n, 3, h, w) in [-1, 1], twice, to distances (n,)."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        for number, width in enumerate(_WIDTHS):
            # Named as in the lpips package, whose first entry is a dropout that does nothing here.
            lin = nn.Module()
            lin.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{number}", lin)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        total = torch.zeros(len(first), device=self.shift.device)
        layers = zip(self._layers(first), self._layers(second), strict=True)
        for number, (one, other) in enumerate(layers):
            apart = (_unit(one) - _unit(other)).square()
            total += getattr(self, f"lin{number}").model(apart).mean((1, 2, 3))
        return total

    def _layers(self, pixels: Tensor) -> list[Tensor]:
        """What comes out of every ReLU."""
        x = (pixels.to(self.shift.device) - self.shift) / self.scale
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()


def load(folder: Path, field: str) -> Lpips:
    """The network with the weights of ``folder``/model.safetensors; LatentflowError names what does not fit."""
    path = folder / FILE
    model = Lpips()
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise LatentflowError(
            f"{field}: {path} is not LPIPS on AlexNet in safetensors ({reason}); docs/evaluation.md says how to make "
            "that file."
        ) from None
    return model.eval().requires_grad_(False).to(best_device())
