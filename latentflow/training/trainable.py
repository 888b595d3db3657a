"""Which weights are trained: all, those whose names match, low-rank changes, or a part beside frozen ones.

LoRA (Hu et al. 2021) adds alpha/rank·BA to a layer's matrix; DoRA (Liu et al. 2024) also trains the columns' lengths.
"""

import json
import logging
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import nn

from latentflow.denoisers import Family
from latentflow.devices import seeded_weights
from latentflow.errors import LatentflowError
from latentflow.params import AdapterParams, TrainParams

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
_ADAPTER = "default"
_METADATA = "lora_adapter_metadata"
_SHOWN = 6
log = logging.getLogger(__name__)


def choose(model: nn.Module, params: TrainParams, family: Family) -> None:
    """Leaves requires_grad on what is to be trained, in place; adapters start as no change at all.

    Raises LatentflowError for a pattern or a target that names nothing.
    """
    if params.adapter.by_images:
        model.requires_grad_(False)
        for part in family.learners(model):
            part.requires_grad_(True)
    elif params.adapter.kind == "none":
        _match(model, params.trainable)
    else:
        _adapt(model, params.adapter, params.adapter.targets or list(family.adapter_targets), params.seed)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info("%.2f of %.2f M weights are trained", trained / 1e6, sum(p.numel() for p in model.parameters()) / 1e6)


def delivered(model: nn.Module) -> nn.Module:
    """The model with its adapters merged into plain weights, names as before; without adapters the model itself.

    Works in place, so save_adapter comes first.
    """
    if _config(model) is None:
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in adapted:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    return model


def save_adapter(model: nn.Module, folder: Path, family: Family) -> bool:
    """Writes the adapters as the file that ``load_lora_weights`` of the family's pipeline reads.

    Returns False, and writes nothing, where there are none or the pipeline has no such loader.
    """
    if (config := _config(model)) is None:
        return False
    if not family.loads_adapters:
        log.info("%s loads no adapters: the merged pipeline is what is delivered", family.pipeline_class)
        return False
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, adapter_name=_ADAPTER, save_embedding_layers=False)
    # Without these diffusers would take alpha to be the rank.
    facts: dict[str, Any] = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
        "use_dora": config.use_dora,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{family.subfolder}.{name}": tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
        folder / ADAPTER_FILE,
        {
            "format": "pt",
            _METADATA: json.dumps({f"{family.subfolder}.{key}": value for key, value in facts.items()}, sort_keys=True),
        },
    )
    return True


def _match(model: nn.Module, patterns: list[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise LatentflowError(
                f"train.trainable: {pattern!r} matches none of the {len(names)} parameters; some of their names are "
                f"{_some(names)}."
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not patterns or any(fnmatchcase(name, pattern) for pattern in patterns))


def _adapt(model: nn.Module, params: AdapterParams, targets: list[str], seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    if not targets:
        raise LatentflowError(
            "train.adapter.targets: which layers a class of your own has is not known; name the layers that are to be "
            "adapted by the endings of their names."
        )
    _require_layers(model, targets)
    config = LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=targets, use_dora=params.kind == "dora")
    with seeded_weights(seed):
        inject_adapter_in_model(config, model, _ADAPTER)


def _require_layers(model: nn.Module, targets: list[str]) -> None:
    """Refuses a target that ends no layer's name, or also the name of what is no layer with a matrix."""
    fits = {name: isinstance(module, nn.Linear | nn.Conv2d) for name, module in model.named_modules() if name}
    for target in targets:
        found = [name for name in fits if name == target or name.endswith(f".{target}")]
        if found and all(fits[name] for name in found):
            continue
        wrong = next((name for name in found if not fits[name]), "")
        what = f"names {wrong}, which is no linear or convolution layer" if wrong else "is the end of no layer's name"
        raise LatentflowError(
            f"train.adapter.targets: {target!r} {what}; some layers are {_some([n for n in fits if fits[n]])}."
        )


def _some(names: list[str]) -> str:
    """A few of the names, from all over the model."""
    return ", ".join(names[:: -(-len(names) // _SHOWN)])


def _config(model: nn.Module) -> "LoraConfig | None":
    """How peft adapted the model; None where it did not."""
    return getattr(model, "peft_config", {}).get(_ADAPTER)
