"""What is told of the steps between two log lines, and the end of a training whose loss is no longer one."""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from latentflow.diffusion import Definition
from latentflow.errors import LatentflowError
from latentflow.params import TrainParams
from latentflow.training.flops import FORWARDS_PER_STEP
from latentflow.training.parallel import Parallel

BINS = 5
CALM = 0.9
WORST = 4


@dataclass(frozen=True)
class Seen:
    """One step as this process saw it: loss and gradient norm (), errors and σ (n,) of its samples; not waited for."""

    step: int
    loss: Tensor
    norm: Tensor
    errors: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Speed:
    """What a step costs and what the device can do: FLOP per sample and FLOP/s, 0 where unknown."""

    flops: int = 0
    peak: float = 0.0


@dataclass
class _Window:
    """The steps since the last log line: their losses, mean errors and norms, and per σ bin the errors' sum and number.

    Norms that are not finite, as fp16 has them until its scale is found, are not in it.
    """

    losses: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0] * BINS)
    counts: list[float] = field(default_factory=lambda: [0.0] * BINS)


class Watch:
    """Collects steps without waiting for the device; `close` and `check` read them all at once.

    ``ids`` gives the record ids of this process's samples of a step, for the message of a training that failed;
    ``last_good`` says which checkpoint is whole.
    """

    def __init__(
        self,
        params: TrainParams,
        definition: Definition,
        parallel: Parallel,
        speed: Speed,
        ids: Callable[[int], list[str]],
        last_good: Callable[[], str],
    ) -> None:
        self._params, self._parallel, self._speed = params, parallel, speed
        self._ids, self._last_good = ids, last_good
        times = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
        self._edges = definition.time_to_sigma(times)[1:-1]
        self._names = [f"{low:.1f}-{high:.1f}" for low, high in pairwise(times.tolist())]
        self._window = _Window()
        self._calm: float | None = None
        self._pending: list[Seen] = []
        self._steps = 0
        self._since, self._waited, self._aside = time.perf_counter(), 0.0, 0.0
        self.line = ""

    def add(self, seen: Seen, waited: float) -> None:
        """A step, before which the loop ``waited`` seconds for its batch."""
        self._pending.append(seen)
        self._steps += 1
        self._waited += waited

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time in here, such as a held-out loss takes, is not counted as training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._aside += time.perf_counter() - start

    def close(self, rate: float) -> dict[str, float]:
        """The figures of the window, which ends here. Raises LatentflowError as `check` does."""
        self.check()
        window, self._window = self._window, _Window()
        loss, norm, error = _mean(window.losses), _mean(window.norms), _mean(window.errors)
        self._calm = error if self._calm is None else CALM * self._calm + (1 - CALM) * error
        figures = {"train/loss": loss, "train/gradient_norm": norm, "train/learning_rate": rate}
        for name, total, count in zip(self._names, window.sums, window.counts, strict=True):
            if count:
                figures[f"train/loss_at_time/{name}"] = total / count
        figures |= self._pace()
        self.line = (
            f"loss {loss:.4f}, {figures['train/images_per_second']:.0f} images/s, "
            f"waiting {figures['train/data_wait_share']:.0%}"
        )
        return figures

    def check(self) -> None:
        """Reads the pending steps. Raises LatentflowError where a loss or gradient is not finite, or a loss leaps."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        read = [torch.stack([s.loss.double(), s.errors.double().mean(), s.norm.double()]) for s in pending]
        rows = self._parallel.mean(torch.stack(read)).tolist()
        for seen, row in zip(pending, rows, strict=True):
            self._judge(seen, *row)
            self._window.losses.append(row[0])
            self._window.errors.append(row[1])
            self._window.norms += [row[2]] if math.isfinite(row[2]) else []
        self._add_errors(pending)

    def state(self) -> dict[str, Any]:
        """What the window holds, so that a resumed run logs the very figures of one that was never stopped."""
        self.check()
        # Copies, because they are written while the window grows.
        return deepcopy(vars(self._window)) | {"calm": self._calm}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on with what `state` gave."""
        values = dict(state)
        self._calm = values.pop("calm")
        self._window = _Window(**values)

    def _add_errors(self, pending: list[Seen]) -> None:
        """Step by step, so that the sums are the same to the bit wherever the reading is cut."""
        table = torch.zeros(len(pending), 2, BINS, dtype=torch.float64)
        for row, seen in zip(table, pending, strict=True):
            places = torch.bucketize(seen.sigma.cpu().contiguous(), self._edges)
            row[0].index_add_(0, places, seen.errors.double().cpu())
            row[1].index_add_(0, places, torch.ones(len(places), dtype=torch.float64))
        for sums, counts in self._parallel.sum(table.to(self._parallel.device)).tolist():
            self._window.sums = [a + b for a, b in zip(self._window.sums, sums, strict=True)]
            self._window.counts = [a + b for a, b in zip(self._window.counts, counts, strict=True)]

    def _judge(self, seen: Seen, loss: float, error: float, norm: float) -> None:
        # By the errors, because an idea may add to the loss what is negative.
        factor, calm = self._params.spike_factor, self._calm
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        elif not math.isfinite(norm) and self._parallel.precision != "fp16":
            what = f"the gradient's norm is {norm}"
        elif factor and calm is not None and error > factor * calm:
            what = f"the loss leapt to {error:.4g} from about {calm:.4g} (train.spike_factor {factor:g})"
        else:
            return
        raise LatentflowError(
            f"{what} at step {seen.step + 1}: {self._worst(seen)}. Lower train.learning_rate (now "
            f"{self._params.learning_rate:g}) or train.clip_norm, with which training begins anew, or look at these "
            f"records; the last good one: {self._last_good()}."
        )

    def _worst(self, seen: Seen) -> str:
        """The samples of the step with the largest errors, as far as this process has them."""
        errors = seen.errors.double().cpu().nan_to_num(nan=math.inf)
        order = errors.argsort(descending=True)[:WORST].tolist()
        ids, sigma = self._ids(seen.step), seen.sigma.tolist()
        return "largest at " + ", ".join(f"{ids[place]!r} (σ {sigma[place]:.3f})" for place in order)

    def _pace(self) -> dict[str, float]:
        now = time.perf_counter()
        spent = max(1e-9, now - self._since - self._aside)
        images = self._params.batch_size * self._steps
        figures = {
            "train/images_per_second": images / spent,
            "train/data_wait_share": self._waited / spent,
            "train/memory_gb": peak_memory(self._parallel.device) / 1e9,
        }
        if self._speed.flops and self._speed.peak:
            done = FORWARDS_PER_STEP * self._speed.flops * images / self._parallel.processes
            figures["train/flops_utilisation"] = done / spent / self._speed.peak
        self._since, self._waited, self._aside, self._steps = now, 0.0, 0.0, 0
        return figures


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held: of the GPU's memory, or of the machine's where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
