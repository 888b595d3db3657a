"""A training's state: gathered from all processes into plain tensors on the CPU, and put back to the bit.

Everything random follows from the step (`devices.step_generator`), so no generator is part of it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from latentflow.errors import LatentflowError
from latentflow.files import write_json
from latentflow.training.ema import EMA

PROGRESS = "progress.json"
Tensors = dict[str, Tensor]
Curves = dict[str, list[list[float]]]


@dataclass(frozen=True)
class Identity:
    """What a training computes: its fingerprint, and the parameters and input digests that are in it."""

    fingerprint: str
    parameters: dict[str, str]
    inputs: dict[str, str]

    def differences(self, other: "Identity") -> list[str]:
        """The names of the parameters and inputs in which the two differ, with both values."""
        mine, theirs = self.parameters | self.inputs, other.parameters | other.inputs
        return [
            f"{name} is {mine.get(name, 'absent')}, was {theirs.get(name, 'absent')}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True)
class Progress:
    """Where a training is: steps done, what it computes, its MLflow run, its curves, and what its window holds."""

    step: int
    identity: Identity
    mlflow_run_id: str
    curves: Curves
    watch: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Progress":
        values = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        return cls(**{**values, "identity": Identity(**values["identity"])})


@dataclass(frozen=True)
class State:
    """What changes while a training runs: tensors by name, averages by file name, optimizers, scaler of the loss."""

    modules: Mapping[str, nn.Module]
    parameters: Mapping[str, Tensor]
    averages: Mapping[str, EMA]
    optimizers: list[Optimizer]
    scaler: GradScaler

    def gathered(self, main: bool) -> "Gathered":
        """Copies of everything, whole; a collective call in which every process takes part and ``main`` keeps them."""
        files = {"model": copied(self._weights(), main)}
        files |= {name: copied(ema.averages, main) for name, ema in self.averages.items()}
        numbers: dict[str, float] = {}
        tensors: Tensors = {}
        for name, key, value in self._optimizer_entries():
            if isinstance(value, Tensor):
                tensors[f"{key}:{name}"] = value
            else:
                numbers[f"{key}:{name}"] = value
        files["optimizer"] = copied(tensors, main)
        return Gathered(files, numbers, self.scaler.state_dict())

    def restore(self, folder: Path) -> None:
        """Puts back what `Gathered.write` left in ``folder``."""
        with torch.no_grad():
            weights, saved = self._weights(), load_file(folder / "model.safetensors")
            for name, tensor in weights.items():
                _put(tensor, saved[name])
            for file, ema in self.averages.items():
                saved = load_file(folder / f"{file}.safetensors")
                for name, tensor in ema.averages.items():
                    _put(tensor, saved[name])
        numbers = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
        self.scaler.load_state_dict(numbers["scaler"])
        flat: dict[str, Any] = load_file(folder / "optimizer.safetensors") | numbers["optimizer"]
        for optimizer in self.optimizers:
            self._load(optimizer, flat)

    def _weights(self) -> Tensors:
        """What the models hold beside frozen parameters, by the names of their parameters."""
        frozen = {
            f"{prefix}{name}"
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad
        }
        every = {
            f"{prefix}{name}": tensor
            for prefix, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }
        return {name: tensor for name, tensor in every.items() if name not in frozen}

    def _names(self) -> dict[int, str]:
        """Which parameter an optimizer holds."""
        return {id(parameter): name for name, parameter in self.parameters.items()}

    def _optimizer_entries(self) -> list[tuple[str, str, Any]]:
        """(parameter's name, name of the entry, value) of all optimizers."""
        names = self._names()
        return [
            (names[id(parameter)], key, value)
            for optimizer in self.optimizers
            for parameter, entries in optimizer.state.items()
            for key, value in entries.items()
        ]

    def _load(self, optimizer: Optimizer, flat: Mapping[str, Any]) -> None:
        names = self._names()
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = {names[id(parameter)]: number for number, parameter in enumerate(held)}
        state: dict[int, dict[str, Any]] = {}
        for entry, value in flat.items():
            key, name = entry.split(":", 1)
            if (number := numbers.get(name)) is not None:
                state.setdefault(number, {})[key] = _like(held[number], value)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True)
class Gathered:
    """A state as it is written: tensors by file, the optimizers' plain numbers, the loss scaler's state."""

    files: dict[str, Tensors]
    numbers: dict[str, float]
    scaler: dict[str, Any]

    def write(self, folder: Path, progress: Progress) -> None:
        """Fills ``folder`` with safetensors and JSON."""
        for name, tensors in self.files.items():
            save_file(tensors, folder / f"{name}.safetensors")
        write_json(folder / "numbers.json", {"optimizer": self.numbers, "scaler": self.scaler})
        write_json(folder / PROGRESS, asdict(progress))


def require_same(named: Path | str, found: Identity, wanted: Identity, more_steps: bool) -> None:
    """Raises LatentflowError naming what differs where a checkpoint that the user named is of another training.

    ``more_steps`` allows another train.steps. From what the checkpoint's own training began does not matter.
    """
    allowed = ("resumed_from ", "train.steps ") if more_steps else ("resumed_from ",)
    differences = [line for line in wanted.differences(found) if not line.startswith(allowed)]
    if differences:
        raise LatentflowError(
            f"{named} is of another training: {'; '.join(differences)}. Set these back, or train without it"
            f"{'' if more_steps else ' (another train.steps is allowed with --extend-steps)'}."
        )


def copied(tensors: Mapping[str, Tensor], keep: bool) -> Tensors:
    """Whole copies on the CPU, which later steps do not change; nothing where ``keep`` is False."""
    copies: Tensors = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            copies[name] = torch.empty_like(full, device="cpu", memory_format=torch.contiguous_format).copy_(full)
    return copies


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, in which every process takes part; any other itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(parameter: Tensor, value: Any) -> Any:
    """An entry of the optimizer, sharded or laid out in memory as its parameter is: fused kernels go by memory."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _put(target: Tensor, value: Tensor) -> None:
    target.copy_(_like(target, value))
