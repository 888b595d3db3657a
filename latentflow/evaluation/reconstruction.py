"""What the autoencoder alone loses: held-out pictures through the shipped VAE and back. No model can draw better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentflow.data.batching import full_batches
from latentflow.data.records import Record, RecordSet
from latentflow.encoders import vae as vae_room
from latentflow.pictures import from_bytes, to_bytes
from latentflow.progress import track

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_SSIM_SIDE = 11
"""SSIM's window; smaller pictures have none."""

Lpips = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Reconstruction:
    """``pictures`` (n, 3, h, w) uint8, the records' as they come back; per metric its value for every record."""

    records: list[Record]
    pictures: Tensor
    values: dict[str, list[float]]

    @property
    def units(self) -> dict[str, dict[str, float]]:
        ids = [record.id for record in self.records]
        return {f"vae/{name}": dict(zip(ids, values, strict=True)) for name, values in self.values.items()}

    @property
    def metrics(self) -> dict[str, float]:
        return {f"vae/{name}": sum(values) / len(values) for name, values in self.values.items()}


def reconstruct(
    vae: "AutoencoderKL",
    records: RecordSet,
    chosen: Sequence[Record],
    side: int,
    batch_size: int,
    lpips: Lpips | None = None,
) -> Reconstruction:
    """PSNR in dB, SSIM and, with weights, LPIPS of every chosen record at ``side`` pixels, means in no batch's way."""
    originals, returned, distances = [], [], []
    batches = list(full_batches(len(chosen), batch_size))
    for rows, new in track(batches, "evaluate: reconstructing", unit="batches"):
        pixels = records.pixels([chosen[row] for row in rows], side).to(vae.device, vae.dtype)
        back = vae_room.decode(vae, vae_room.encode(vae, pixels).to(vae.dtype))
        originals.append(to_bytes(pixels[:new]).cpu())
        returned.append(to_bytes(back[:new].float()).cpu())
        if lpips is not None:
            distances.append(lpips(from_bytes_first(originals[-1]), from_bytes_first(returned[-1])).cpu())
    pictures = torch.cat(returned)
    values = similarity(torch.cat(originals), pictures)
    if distances:
        values["lpips"] = torch.cat(distances).double().tolist()
    return Reconstruction(list(chosen), pictures, values)


def from_bytes_first(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) uint8 to pixels in [-1, 1] of the same shape."""
    return from_bytes(pictures.movedim(1, -1))


def similarity(originals: Tensor, returned: Tensor) -> dict[str, list[float]]:
    """PSNR and SSIM picture by picture, by torchmetrics: (n, 3, h, w) uint8. No SSIM for sides below its window."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    first, second = originals.double() / 255, returned.double() / 255
    ratio = peak_signal_noise_ratio(second, first, data_range=1.0, dim=(1, 2, 3), reduction="none")
    # Equal to the last bit is infinitely good; eight bits cannot tell more than this.
    values = {"psnr": ratio.clamp(max=_MOST).tolist()}
    if min(originals.shape[-2:]) >= _SSIM_SIDE:
        found = structural_similarity_index_measure(second, first, data_range=1.0, reduction="none")
        values["ssim"] = found.reshape(-1).tolist()
    return values


# A single value of the picture off by one, in the largest picture of the parameters (4096 x 4096 RGB).
_MOST = 125.0
