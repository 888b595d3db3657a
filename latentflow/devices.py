"""On what a step computes: the accelerator's settings and the weights' seed."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def precision(wanted: str) -> str:
    """What ``auto`` is on this machine: bf16 on a GPU that has it, else fp32; any other name itself.

    On CPUs without bf16 arithmetic autocast is many times slower than fp32, so `auto` never picks it there.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def accelerator(wanted: str) -> "Accelerator":
    """Accelerate's object with fp32 weights under autocast of that precision."""
    from accelerate import Accelerator

    chosen = precision(wanted)
    return Accelerator(mixed_precision="no" if chosen == "fp32" else chosen)


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU: where a frozen model runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Inside, new modules draw their weights from ``seed``; the global generator is as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def step_generator(seed: int, stream: str, step: int) -> torch.Generator:
    """A CPU generator for one step of one stream of randomness, so that any step can be repeated by itself."""
    return torch.Generator("cpu").manual_seed(step_seed(seed, stream, step))


def step_seed(seed: int, stream: str, step: int) -> int:
    """The seed of that generator."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()[:8]) >> 1
