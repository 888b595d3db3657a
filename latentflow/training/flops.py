"""How much arithmetic a model asks for and how much a device does: both sides of the model FLOP/s utilisation.

By the usual convention a training step costs ``FORWARDS_PER_STEP`` forward passes, for the backward pass is two, and
what gradient checkpointing computes again is not counted.
"""

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentflow.data.condition import Condition
from latentflow.denoisers import Denoiser

FORWARDS_PER_STEP = 3
TRIES = 3
log = logging.getLogger(__name__)


def forward_flops(denoiser: Denoiser, shape: Sequence[int], condition: Condition) -> int:
    """FLOPs of one sample's forward pass: latents of ``shape`` (c, h, w), a ``condition`` of one row.

    Counts matrix products, convolutions and attention; nothing is computed. To be asked before the model is wrapped or
    sharded. 0 where it cannot be counted.
    """
    try:
        model = on_meta(denoiser.model)
        xt, sigma = torch.empty(1, *shape, device="meta"), torch.ones(1, device="meta")
        told = condition.to(xt.device, xt.dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            replace(denoiser, model=model).predict(xt, sigma, told)
    except Exception as error:  # a user's own model may raise anything where there are no values
        log.info("the model's FLOPs cannot be counted: %s", error)
        return 0
    return int(counter.get_total_flops())


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode whose tensors have shapes and dtypes only."""
    memo: dict[int, Tensor] = {
        id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for tensor in model.buffers()
    }
    for tensor in model.parameters():
        memo[id(tensor)] = nn.Parameter(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), False)
    return copy.deepcopy(model, memo).eval()


@cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few large matrix products on ``device``: a fraction of a second, if it is any good."""
    side, repeats = (8192, 10) if device.type == "cuda" else (512, 2)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    seconds = min(_seconds(left, right, repeats) for _ in range(1 + TRIES))
    return 2 * side**3 * repeats / seconds


def _seconds(left: Tensor, right: Tensor, repeats: int) -> float:
    _wait_for(left.device)
    start = time.perf_counter()
    for _ in range(repeats):
        left @ right
    _wait_for(left.device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
