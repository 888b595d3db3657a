"""The held-out loss: the right number, whatever the batch size and the company."""

import math

import pytest
import torch
from torch import Tensor

from latentflow.data.condition import Condition
from latentflow.diffusion import FLOW
from latentflow.errors import LatentflowError
from latentflow.evaluation.heldout import TIMES, Group, HeldoutLoss, heldout_loss


def data(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(count, 4, 4, 4, generator=generator)
    text = torch.randn(count, 3, 5, generator=generator)
    return x0, text, torch.ones(count, 3, dtype=torch.bool)


def group(x0: Tensor, text: Tensor, mask: Tensor) -> Group:
    return Group(len(x0), tuple(x0.shape[1:]), lambda rows: (x0[rows], Condition(text[rows], mask[rows])))


def toy(xt: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Depends on all its inputs, sample by sample."""
    shift = (condition.text * condition.mask[..., None]).mean((1, 2)) + sigma
    return torch.tanh(xt) + shift.reshape(-1, 1, 1, 1)


def measure(count: int = 13, batch_size: int = 4, seed: int = 0) -> HeldoutLoss:
    return heldout_loss(toy, [group(*data(count))], FLOW, TIMES, seed, batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 64, 1000])
def test_the_batch_size_does_not_matter(batch_size: int):
    wanted, found = measure(), measure(batch_size=batch_size)
    assert found.mean == pytest.approx(wanted.mean, rel=1e-6)
    for first, second in zip(found.by_sigma, wanted.by_sigma, strict=True):
        assert first.mean == pytest.approx(second.mean, rel=1e-6)
        assert first.half_width == pytest.approx(second.half_width, rel=1e-5)


def test_equal_calls_give_equal_bits_and_another_seed_other_noise():
    assert measure() == measure()
    assert measure(seed=1).mean != measure().mean


def test_the_noise_of_a_sample_does_not_depend_on_the_others():
    """Σ over the first five of a set of 13 is the set of five: their noise is the same."""
    seen: list[Tensor] = []

    def spy(xt: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        seen.append(xt.clone())
        return xt

    for count in (13, 5):
        heldout_loss(spy, [group(*data(count))], FLOW, [0.5], 0, 100)
    assert torch.equal(seen[0][:5], seen[1])


def test_a_perfect_model_has_no_loss_and_zero_has_the_targets_energy():
    x0, text, mask = data(400)

    def oracle(xt: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return (xt - x0[: len(xt)]) / sigma.reshape(-1, 1, 1, 1)

    perfect = heldout_loss(oracle, [group(x0, text, mask)], FLOW, [0.5], 0, 400)
    assert perfect.mean < 1e-10
    zero = heldout_loss(lambda xt, *_: torch.zeros_like(xt), [group(x0, text, mask)], FLOW, TIMES, 0, 400)
    # E |x_T - x_0|² = 2 per dimension, at every σ.
    assert abs(zero.mean - 2) < 2 * zero.half_width
    assert all(abs(level.mean - 2) < 4 * level.half_width for level in zero.by_sigma)


def test_the_interval_is_over_samples_and_one_sample_claims_nothing():
    result = measure(count=50)
    assert result.samples == 50
    assert [level.sigma for level in result.by_sigma] == list(TIMES)
    assert math.fsum(level.mean for level in result.by_sigma) / 10 == pytest.approx(result.mean)
    alone = measure(count=1)
    assert alone.half_width == alone.mean


def test_an_empty_split_is_an_error_with_a_remedy():
    with pytest.raises(LatentflowError, match="holds no samples"):
        measure(count=0)
