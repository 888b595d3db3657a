"""The optimizers by name; all take their learning rate from the loop, step by step."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from latentflow.errors import LatentflowError
from latentflow.params import TrainParams

BETA1 = 0.9


def build(params: TrainParams, parameters: Mapping[str, Tensor], in_blocks: Collection[str]) -> list[Optimizer]:
    """One optimizer, or two that share the parameters between them.

    ``in_blocks`` names the parameters of the repeated blocks, whose matrices Muon takes (Jordan et al. 2024); its
    updates are scaled to the size of AdamW's, so that learning rate and weight decay mean the same for both.
    """
    everything = list(parameters.values())
    if params.optimizer == "adamw":
        return [_adamw(params, everything)]
    if params.optimizer == "adafactor":
        return [torch.optim.Adafactor(everything, params.learning_rate, weight_decay=params.weight_decay)]
    if params.optimizer == "adamw_8bit":
        return [_adamw_8bit(params, everything)]
    matrices = {name: tensor for name, tensor in parameters.items() if tensor.ndim == 2 and name in in_blocks}
    if not matrices:
        raise LatentflowError(
            "train.optimizer muon: none of the trained parameters is a matrix of a block; choose adamw."
        )
    muon = torch.optim.Muon(
        list(matrices.values()),
        params.learning_rate,
        weight_decay=params.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = [tensor for name, tensor in parameters.items() if name not in matrices]
    return [muon, _adamw(params, rest)] if rest else [muon]


def _adamw(params: TrainParams, tensors: list[Tensor]) -> Optimizer:
    betas = (BETA1, params.beta2)
    return torch.optim.AdamW(tensors, params.learning_rate, betas=betas, weight_decay=params.weight_decay, fused=True)


def _adamw_8bit(params: TrainParams, tensors: list[Tensor]) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise LatentflowError(
            f"train.optimizer adamw_8bit needs bitsandbytes ({error}): pip install "
            "'latentflow[gpu]', or choose adafactor."
        ) from None
    optimizer: Optimizer = AdamW8bit(
        tensors, params.learning_rate, betas=(BETA1, params.beta2), weight_decay=params.weight_decay
    )
    return optimizer


def set_rate(optimizers: list[Optimizer], rate: float) -> None:
    """Gives every parameter the learning rate ``rate``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
