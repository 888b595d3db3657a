"""FLOPs of a forward pass by hand and by count, and the peak that they are held against."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentflow import denoisers
from latentflow.data.condition import Condition
from latentflow.denoisers import FAMILIES, Denoiser
from latentflow.diffusion import FLOW
from latentflow.params import load
from latentflow.training.flops import forward_flops, measured_peak, on_meta

PARAMS = Path(__file__).parents[2] / "params.yaml"
SMALL = (
    "model.pixart.layers=2",
    "model.pixart.heads=2",
    "model.pixart.head_dim=16",
    "model.pixart.patch_size=2",
    "model.auraflow.heads=2",
    "model.auraflow.head_dim=16",
    "model.unet.channels=[32, 32]",
)
SHAPE, TOKENS, WIDTH = (4, 8, 8), 5, 24
CAPTION = Condition(torch.zeros(1, TOKENS, WIDTH), torch.ones(1, TOKENS, dtype=torch.bool))


def build(name: str) -> Denoiser:
    model = load(PARAMS, [f"model.denoiser={name}", *SMALL]).model
    return Denoiser(FAMILIES[name], denoisers.build(model, list(SHAPE), WIDTH, 0), FLOW)


def by_hand(denoiser: Denoiser) -> int:
    """Twice the multiplications of every linear layer and convolution in one real pass, attention left out."""
    counted = 0

    def count(module: nn.Module, _given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        assert isinstance(module, nn.Linear | nn.Conv2d)
        per_output = module.weight[0].numel()
        counted += 2 * output.numel() * per_output

    handles = [
        module.register_forward_hook(count)
        for module in denoiser.model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        mask = torch.ones(1, TOKENS, dtype=torch.bool)
        denoiser.predict(torch.randn(1, *SHAPE), torch.tensor([0.5]), Condition(torch.randn(1, TOKENS, WIDTH), mask))
    for handle in handles:
        handle.remove()
    return counted


def test_a_dits_flops_are_those_of_its_layers_and_attentions() -> None:
    denoiser = build("pixart")
    patches, width, layers = 16, 32, 2
    # Scores and mixtures: patches with patches, and patches with caption tokens.
    attention = layers * 2 * 2 * patches * (patches + TOKENS) * width
    assert forward_flops(denoiser, SHAPE, CAPTION) == by_hand(denoiser) + attention


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_counted_without_a_trace(name: str) -> None:
    denoiser = build(name)
    before = {key: tensor.clone() for key, tensor in denoiser.model.state_dict().items()}
    layers = by_hand(denoiser)
    counted = forward_flops(denoiser, SHAPE, CAPTION)
    assert layers <= counted < 2 * layers
    assert denoiser.model.training
    after = denoiser.model.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert {tensor.device.type for tensor in denoiser.model.parameters()} == {"cpu"}


def test_the_copy_without_values_has_the_same_parameters() -> None:
    model = build("pixart").model
    copy = on_meta(model)
    assert {name: p.shape for name, p in copy.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert {tensor.device.type for tensor in (*copy.parameters(), *copy.buffers())} == {"meta"}
    assert not copy.training


class ReadsValues:
    """A family whose forward pass asks for a value, which a tensor without values cannot give."""

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        return xt * timestep[0].item()


def test_a_model_that_cannot_be_counted_counts_for_nothing() -> None:
    assert forward_flops(Denoiser(ReadsValues(), nn.Linear(2, 2), FLOW), SHAPE, CAPTION) == 0  # type: ignore[arg-type]


def test_the_peak_is_measured_once_and_disturbs_nothing() -> None:
    state = torch.get_rng_state()
    measured_peak.cache_clear()
    peak = measured_peak(torch.device("cpu"), torch.float32)
    # Between a pocket calculator's and a rack's.
    assert 1e8 < peak < 1e16
    assert measured_peak(torch.device("cpu"), torch.float32) == peak
    assert torch.equal(torch.get_rng_state(), state)
