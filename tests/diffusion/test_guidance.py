"""Guidance asks for both halves at once, moves away from the empty condition, and only where it should."""

from collections.abc import Sequence

import pytest
import torch
from torch import Generator, Tensor

from latentflow.diffusion import FLOW, Guidance, Schedule, sample


def three(*shape: int) -> list[Tensor]:
    generator = Generator().manual_seed(0)
    return list(torch.randn((3, *shape), generator=generator, dtype=torch.float64))


class Model:
    """Answers from x_t, σ and its condition of two tensors, and notes how many rows it was asked for at which σ."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def __call__(self, xt: Tensor, sigma: Tensor, condition: Sequence[Tensor]) -> Tensor:
        self.asked.append((len(xt), sigma.item()))
        text, mask = condition
        return torch.tanh(xt) * (text * mask).sum(-1)[:, None, None] + sigma


XT, *_ = three(4, 2, 3)
TEXT, EMPTY, _ = three(4, 5)
MASK = torch.ones(4, 5, dtype=torch.bool)
CONDITION, NOTHING = [TEXT, MASK], [EMPTY, MASK & (torch.arange(5) < 2)]
SIGMA = torch.tensor(0.5, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 1.5, 7.5])
def test_one_call_answers_u_plus_scale_times_the_contrast(scale: float) -> None:
    model = Model()
    guided = Guidance(scale)(model, CONDITION, NOTHING)(XT, SIGMA)
    assert model.asked == [(8, 0.5)]
    conditional, unconditional = model(XT, SIGMA, CONDITION), model(XT, SIGMA, NOTHING)
    assert torch.allclose(guided, unconditional + scale * (conditional - unconditional), rtol=1e-12, atol=1e-12)


def test_no_guidance_asks_only_the_condition() -> None:
    model = Model()
    assert torch.equal(Guidance(1.0)(model, CONDITION, NOTHING)(XT, SIGMA), model(XT, SIGMA, CONDITION))
    assert [rows for rows, _ in model.asked] == [4, 4]


def test_outside_of_its_interval_guidance_asks_only_the_condition() -> None:
    model = Model()
    sigmas = Schedule()(FLOW, 4)
    sample(FLOW, Guidance(3.0, low=0.5, high=0.75)(model, CONDITION, NOTHING), XT, sigmas)
    assert model.asked == [(4, 1.0), (8, 0.75), (8, 0.5), (4, 0.25)]


def spread(output: Tensor) -> Tensor:
    return output.std((1, 2))


def test_rescaling_takes_the_conditionals_deviation_per_sample() -> None:
    conditional, unconditional, _ = three(4, 2, 3)
    plain, half, whole = (Guidance(5.0, rescale=share).combine(conditional, unconditional) for share in (0.0, 0.5, 1.0))
    assert torch.allclose(spread(whole), spread(conditional))
    assert not torch.allclose(spread(plain), spread(conditional), rtol=0.5)
    assert torch.allclose(half, (plain + whole) / 2)
    assert torch.allclose(
        whole / whole.abs().amax((1, 2), keepdim=True), plain / plain.abs().amax((1, 2), keepdim=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_guidance_keeps_the_type(dtype: torch.dtype) -> None:
    conditional, unconditional, _ = (x.to(dtype) for x in three(4, 2, 3))
    guided = Guidance(4.0, rescale=0.7).combine(conditional, unconditional)
    exact = Guidance(4.0, rescale=0.7).combine(conditional.double(), unconditional.double())
    assert guided.dtype == dtype
    assert torch.allclose(guided.double(), exact, atol=32 * torch.finfo(dtype).eps)
