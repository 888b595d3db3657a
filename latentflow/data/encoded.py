"""The encoded set: safetensors shards of latents and text, written whole and checked when opened."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentflow.errors import LatentflowError
from latentflow.files import atomic_file, sha256_file
from latentflow.manifest import EncodedManifest, Shard

PROMPTS = "prompts.safetensors"


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors to a safetensors file that is whole or absent. Raises LatentflowError on NaN or infinity."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            row = int((~torch.isfinite(tensor)).flatten(1).any(dim=1).nonzero()[0, 0])
            raise LatentflowError(
                f"{path.name}: the encoder gave NaN or infinity in `{key}` for row {row} of the shard."
            )
    with atomic_file(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)


def describe_shard(folder: Path, path: Path, split: str) -> Shard:
    """The manifest's entry of a shard: its keys with shape and type, its count and sha256."""
    with safe_open(path, framework="pt") as file:
        keys = {
            key: (file.get_slice(key).get_shape(), str(file.get_slice(key).get_dtype())) for key in sorted(file.keys())
        }
    count = keys["latents"][0][0]
    return Shard(
        file=path.relative_to(folder).as_posix(), split=split, count=count, sha256=sha256_file(path), keys=keys
    )


@dataclass(frozen=True)
class EncodedSplit:
    """One split in tensors (memory-mapped where it is one shard), n rows in the order of the records' ids.

    ``latents`` (n, c, h, w) are in the scale that the denoiser sees; ``text`` is (n, tokens, width),
    ``text_mask`` (n, tokens) bool.
    """

    latents: Tensor
    latents_flipped: Tensor | None
    text: Tensor
    text_mask: Tensor

    def __len__(self) -> int:
        return len(self.latents)


class EncodedSet:
    """An encoded set that ``encode`` wrote."""

    def __init__(self, folder: Path, manifest: EncodedManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._splits: dict[str, EncodedSplit] = {}
        extra = load_file(folder / PROMPTS)
        self.empty_text, self.empty_mask = extra["empty_text"], extra["empty_mask"]
        self.prompt_text, self.prompt_mask = extra["text"], extra["text_mask"]

    @classmethod
    def open(cls, folder: Path) -> "EncodedSet":
        """Opens the set; every file is compared with its sha256 and a wrong one is named."""
        manifest = EncodedManifest.read(folder)
        expected = {shard.file: shard.sha256 for shard in manifest.shards} | {PROMPTS: manifest.prompts_sha256}
        for name, sha256 in expected.items():
            path = folder / name
            if not path.is_file() or sha256_file(path) != sha256:
                raise LatentflowError(
                    f"{path} is missing or not the file that was encoded; run `latentflow encode` again."
                )
        return cls(folder, manifest)

    @staticmethod
    def train_latents(folder: Path, shards: list[Shard]) -> Tensor:
        """The training split's latents of a set whose manifest is not written yet."""
        return torch.cat([load_file(folder / shard.file)["latents"] for shard in shards if shard.split == "train"])

    def split(self, name: str) -> EncodedSplit:
        """A split's rows, read at the first call."""
        if name not in self._splits:
            self._splits[name] = self._read(name)
        return self._splits[name]

    def _read(self, name: str) -> EncodedSplit:
        shards = [load_file(self.folder / shard.file) for shard in self.manifest.shards if shard.split == name]
        if not shards:
            raise LatentflowError(f"{self.folder} holds no records in the {name} split.")

        def joined(key: str) -> Tensor:
            parts = [shard[key] for shard in shards]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        flipped = joined("latents_flipped") if "latents_flipped" in shards[0] else None
        return EncodedSplit(joined("latents"), flipped, joined("text"), joined("text_mask"))


def full_batches(count: int, batch_size: int) -> Iterator[tuple[list[int], int]]:
    """Indices of full batches over ``count`` rows and how many of each are new.

    The last batch is filled up with its last row: a batch of another size differs in the last bit.
    """
    for start in range(0, count, batch_size):
        rows = list(range(start, min(start + batch_size, count)))
        yield rows + [rows[-1]] * (batch_size - len(rows)), len(rows)
