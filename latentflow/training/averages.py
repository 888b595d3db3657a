"""Averages of the weights of any length, made after training from snapshots of two (Karras et al., arXiv 2312.02696).

A power-function average at step t weighs the weights of step τ by p(τ) = (γ+1) τ^γ / t^(γ+1). Its relative length is
the standard deviation of that density over t: of length 0.1, an average covers about the last tenth of the run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentflow.errors import LatentflowError
from latentflow.files import atomic_file, sha256_file, write_json

INDEX = "averages.json"
LONGEST = 0.25
# Of the wanted profile's norm, how much may be missed; see `missed`.
TOLERANCE = 0.1

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def gamma(length: float) -> float:
    """The exponent γ of a relative length σ: the largest root of (γ+1) / ((γ+2)² (γ+3)) = σ² (their equation 126).

    Raises LatentflowError for lengths outside (0, 0.25].
    """
    if not 0 < length <= LONGEST:
        raise LatentflowError(f"the length of an average is above 0 and at most {LONGEST:g}, found {length:g}.")
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class Snapshot(BaseModel):
    """The average of one length after one step, in a file of the folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    step: int
    length: float
    sha256: str


class Index(BaseModel):
    """averages.json."""

    model_config = ConfigDict(extra="forbid")

    snapshots: list[Snapshot]


class Snapshots:
    """A folder of averages by step and length, with averages.json. Saving one again writes the same files again.

    In fp16 they take half the room. The rounding, 2^-12 of a weight's size, is far below what differs between two
    lengths, and the scales at which a model keeps its weights are far from where fp16 ends (bf16 rounds eight times
    as much).
    """

    def __init__(self, folder: Path, precision: Literal["fp16", "fp32"] = "fp16") -> None:
        self.folder = folder
        self._dtype = _DTYPES[precision]

    def save(self, step: int, length: float, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the average of ``length`` after ``step``. Raises LatentflowError if a tensor does not fit the type."""
        path = self.folder / f"step-{step:09d}-length-{length:g}.safetensors"
        with atomic_file(path) as temporary:
            save_file({name: self._stored(name, tensor) for name, tensor in tensors.items()}, temporary)
        new = Snapshot(file=path.name, step=step, length=length, sha256=sha256_file(path))
        others = [one for one in self.read() if one.file != new.file]
        index = Index(snapshots=sorted([*others, new], key=lambda one: (one.step, one.length)))
        write_json(self.folder / INDEX, index.model_dump(mode="json"))

    def read(self) -> list[Snapshot]:
        """What the folder holds, by step and length. Raises LatentflowError where averages.json is another thing."""
        path = self.folder / INDEX
        if not path.is_file():
            return []
        try:
            return Index.model_validate_json(path.read_bytes()).snapshots
        except ValidationError as error:
            raise LatentflowError(f"{path} is not what `latentflow train` writes: {error}") from error

    def _stored(self, name: str, tensor: Tensor) -> Tensor:
        stored = tensor.detach().to("cpu", self._dtype).contiguous()
        if not stored.isfinite().all():
            raise LatentflowError(
                f"the average of {name} does not fit {str(self._dtype).removeprefix('torch.')}: its largest value is "
                f"{tensor.abs().max().item():g}."
            )
        return stored


def combine(snapshots: Snapshots, length: float, step: int) -> dict[str, Tensor]:
    """The average of ``length`` after ``step``, as fp32 tensors: the nearest weighted sum of the snapshots.

    Raises LatentflowError where the nearest one is not near, or a snapshot is missing or damaged.
    """
    found = [one for one in snapshots.read() if one.step <= step]
    profiles = [(one.step, gamma(one.length)) for one in found]
    shares, missing = nearest(profiles, (step, gamma(length)))
    if missing > TOLERANCE:
        lengths = ", ".join(f"{each:g}" for each in sorted({one.length for one in found})) or "none"
        raise LatentflowError(
            f"an average of length {length:g} at step {step} cannot be made of the {len(found)} snapshots in "
            f"{snapshots.folder}: {missing:.0%} of it would be missed. The tracked lengths are {lengths}: choose one "
            "nearer to them, or train with other train.ema_lengths or more train.ema_snapshots."
        )
    for one in found:
        _check(snapshots.folder / one.file, one.sha256)
    return dict(_summed([snapshots.folder / one.file for one in found], shares.tolist()))


def nearest(profiles: Sequence[tuple[int, float]], wanted: tuple[int, float]) -> tuple[NDArray[np.float64], float]:
    """The shares of the profiles (step, γ) whose sum is nearest to ``wanted``, and what is missed of its norm.

    The shares add up to 1, so that weights which did not move are kept as they are.
    """
    if not profiles:
        return np.zeros(0), 1.0
    size = len(profiles)
    # The minimum of x·Ax - 2 b·x where the shares add up to 1, by the multiplier of that condition.
    system = np.ones((size + 1, size + 1))
    system[:size, :size] = [[_product(one, other) for other in profiles] for one in profiles]
    system[size, size] = 0
    right = np.array([*(_product(one, wanted) for one in profiles), 1.0])
    shares = np.linalg.lstsq(system, right, rcond=None)[0][:size]
    norm = _product(wanted, wanted)
    error = norm - 2 * right[:size] @ shares + shares @ system[:size, :size] @ shares
    return shares, math.sqrt(max(0.0, error / norm))


def _product(one: tuple[int, float], other: tuple[int, float]) -> float:
    """∫ p(τ) q(τ) dτ of two profiles (step, γ), of which the earlier one's end bounds the integral."""
    (early, a), (late, b) = sorted((one, other))
    return (a + 1) * (b + 1) / (a + b + 1) * math.pow(early / late, b) / late


def _check(path: Path, sha256: str) -> None:
    if not path.is_file() or sha256_file(path) != sha256:
        fault = "damaged" if path.is_file() else "missing"
        raise LatentflowError(f"{path} is {fault}: train again, or fetch the folder again from where it came.")


def _summed(paths: Sequence[Path], shares: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of the files, weighted and summed in float64; one tensor at a time is in memory."""
    with ExitStack() as stack:
        files: list[Any] = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        for name in files[0].keys():  # noqa: SIM118  no mapping, though it has keys
            total = torch.zeros((), dtype=torch.float64)
            for file, share in zip(files, shares, strict=True):
                total = total + share * file.get_tensor(name).double()
            yield name, total.float()
