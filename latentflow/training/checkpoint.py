"""Checkpoints: folders of safetensors that are whole or absent, from which a run goes on as if never stopped."""

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from latentflow.files import atomic_folder, write_json
from latentflow.training.ema import EMA

PREFIX = "step-"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a run is: steps done, its fingerprint and MLflow run, and the rows of its curves so far."""

    step: int
    fingerprint: str
    mlflow_run_id: str
    curves: dict[str, list[list[float]]]


def save(folder: Path, model: nn.Module, ema: EMA, optimizer: Optimizer, progress: Progress) -> Path:
    """Writes a checkpoint below ``folder`` and removes older ones. Everything random follows from the step."""
    path = folder / f"{PREFIX}{progress.step:09d}"
    with atomic_folder(path) as temporary:
        save_file(_tensors(model), temporary / "model.safetensors")
        save_file(_tensors(ema.model), temporary / "ema.safetensors")
        save_file(_flat_state(optimizer), temporary / "optimizer.safetensors")
        write_json(temporary / "progress.json", asdict(progress))
    for old in _all(folder)[:-1]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def restore_latest(folder: Path, model: nn.Module, ema: EMA, optimizer: Optimizer) -> Progress | None:
    """Loads the newest checkpoint below ``folder`` into the given objects; None where there is none."""
    if not (paths := _all(folder)):
        return None
    path = paths[-1]
    model.load_state_dict(load_file(path / "model.safetensors"))
    ema.model.load_state_dict(load_file(path / "ema.safetensors"))
    _load_flat_state(optimizer, load_file(path / "optimizer.safetensors"))
    progress = Progress(**json.loads((path / "progress.json").read_text(encoding="utf-8")))
    log.info("going on from %s", path)
    return progress


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def _flat_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``<parameter number>.<name>`` tensors; hyperparameters come from the parameters."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": tensor.contiguous() for number, entry in state.items() for name, tensor in entry.items()
    }


def _load_flat_state(optimizer: Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in flat.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
