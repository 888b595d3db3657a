"""The two dials of drawing, guidance and steps: the same prompts over a grid of both, and what a picture costs."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from latentflow.evaluation.drawing import Artist, Request
from latentflow.evaluation.memory import Watch
from latentflow.params import EvaluateParams
from latentflow.progress import track

_REPEATS = 3


@dataclass(frozen=True)
class Dials:
    """``pictures`` (guidances, steps, prompts, 3, h, w) uint8, all of a prompt with the same seed."""

    requests: list[Request]
    guidances: list[float]
    steps: list[int]
    pictures: Tensor


@dataclass(frozen=True)
class Cost:
    """Of one picture drawn alone: median ``seconds``, and ``megabytes`` of weights and of all that comes on top."""

    steps: int
    seconds: float
    megabytes: float


def cost_metrics(costs: Sequence[Cost]) -> dict[str, float]:
    """Flat names; they depend on the machine and are in no digest."""
    values = {f"seconds_one_picture/steps_{cost.steps}": cost.seconds for cost in costs}
    return values | {f"memory_one_picture_mb/steps_{cost.steps}": cost.megabytes for cost in costs}


def grid_steps(params: EvaluateParams) -> list[int]:
    """The numbers of steps that are tried: the asked ones and the evaluation's own."""
    return sorted({*params.grid.steps, params.steps})


def draw_grid(artist: Artist, requests: Sequence[Request], params: EvaluateParams) -> Dials | None:
    """Every prompt at every guidance and number of steps; None where ``grid.prompts`` is 0 or nothing is asked."""
    if not requests:
        return None
    guidances, steps = sorted({*params.grid.guidance, params.guidance}), grid_steps(params)
    cells = list(product(guidances, steps))
    pictures = [
        artist.draw(requests, len(requests), "", replace(artist.settings, guidance=guidance, steps=count)).pictures
        for guidance, count in track(cells, "evaluate: guidance and steps", unit="cells")
    ]
    stacked = torch.stack(pictures).unflatten(0, (len(guidances), len(steps)))
    return Dials(list(requests), guidances, steps, stacked)


def measure_costs(artist: Artist, request: Request, steps: Sequence[int]) -> list[Cost]:
    """Time and memory of one picture drawn alone, by number of steps, at the evaluation's guidance."""
    artist.draw([request], 1, "")
    found = []
    for count in steps:
        settings, seconds = replace(artist.settings, steps=count), []
        with Watch(artist.device) as watch:
            for _ in range(_REPEATS):
                began = time.perf_counter()
                artist.draw([request], 1, "", settings)
                seconds.append(time.perf_counter() - began)
        found.append(Cost(count, statistics.median(seconds), (artist.weights + watch.grown) / 2**20))
    return found
