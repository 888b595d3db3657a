"""What is derived from two definitions holds for any invertible pair, and the built-in pairs are the papers'."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentflow.diffusion import DEFINITIONS, FLOW, Definition, ddpm, edm, find, flow, trigonometric
from latentflow.diffusion.definition import Coefficients
from latentflow.diffusion.definitions import PREDICTIONS, betas_to_sigmas, linear_betas, scaled_linear_betas

unit = st.floats(0.02, 0.98)
small = st.floats(-2, 2)
angles = st.floats(0.03, 1.5)
"""Between data and noise; 1.503 is where Stable Diffusion's table ends."""


def constant(first: float, second: float) -> Coefficients:
    return lambda sigma: (torch.full_like(sigma, first), torch.full_like(sigma, second))


def wave(first: tuple[float, float, float], second: tuple[float, float, float]) -> Coefficients:
    def coefficients(sigma: Tensor) -> tuple[Tensor, Tensor]:
        one, other = (start + size * torch.sin(speed * sigma) for start, size, speed in (first, second))
        return one, other

    return coefficients


waves = st.tuples(small, small, small)
definitions = st.one_of(
    st.builds(lambda c, d: Definition("random", "constant", FLOW.data, constant(c, d)), small, small),
    st.builds(
        lambda a, b, c, d: Definition("random", "smooth", wave(a, b), wave(c, d)),
        *(waves, waves, waves, waves),
    ),
)
built_in = st.sampled_from([build() for build in DEFINITIONS.values()])
one_path = st.sampled_from([flow, trigonometric, ddpm]).flatmap(
    lambda build: st.tuples(*(st.sampled_from(list(PREDICTIONS)).map(build) for _ in range(2)))
)


def draw(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, xT = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    return x0, xT


def at(sigma: float) -> Tensor:
    return torch.tensor([sigma, sigma / 2], dtype=torch.float64)


def same(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(definition=definitions, sigma=unit, share=unit)
def test_a_step_with_the_exact_output_lands_on_the_data_definition(
    definition: Definition, sigma: float, share: float
) -> None:
    now = at(sigma)
    assume(definition.determinant(now).abs().min() > 1e-2)
    x0, xT = draw(2, 3, 4)
    xt, output = definition.add_noise(x0, xT, now), definition.target(x0, xT, now)
    assert same(definition.step(xt, output, now, now * share), definition.add_noise(x0, xT, now * share))
    recovered_x0, recovered_xT = definition.recover(xt, output, now)
    assert same(recovered_x0, x0)
    assert same(recovered_xT, xT)


@settings(max_examples=60, deadline=None)
@given(pair=one_path, sigma=unit)
def test_conversion_on_one_path_gives_the_others_target_and_back(
    pair: tuple[Definition, Definition], sigma: float
) -> None:
    ours, theirs = pair
    now = at(sigma)
    x0, xT = draw(2, 3)
    xt, output = ours.add_noise(x0, xT, now), ours.target(x0, xT, now)
    converted = ours.convert(output, xt, now, theirs)
    assert same(converted, theirs.target(x0, xT, now))
    assert same(theirs.convert(converted, xt, now, ours), output)
    matched, factor = ours.match(now, theirs)
    assert torch.equal(matched, now)
    assert torch.equal(factor, torch.ones_like(now))


@settings(max_examples=100, deadline=None)
@given(ours=built_in, theirs=built_in, angle=angles)
def test_conversion_across_paths_gives_the_others_target_and_back(
    ours: Definition, theirs: Definition, angle: float
) -> None:
    now = ours.sigma_at_angle(at(angle))
    x0, xT = draw(2, 3)
    xt, output = ours.add_noise(x0, xT, now), ours.target(x0, xT, now)
    then, factor = ours.match(now, theirs)
    there = factor[:, None] * xt
    assert same(there, theirs.add_noise(x0, xT, then))
    converted = ours.convert(output, xt, now, theirs)
    assert same(converted, theirs.target(x0, xT, then))
    assert same(theirs.match(then, ours)[0], now)
    assert same(theirs.convert(converted, there, then, ours), output)


def test_no_match_where_the_other_path_ends_before() -> None:
    with pytest.raises(ValueError, match=r"DDPM ends at σ=0\.99\d+, before it is as noisy"):
        FLOW.match(torch.tensor(1.0), ddpm())


@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
def test_the_angle_runs_from_data_to_noise_and_back(build: Callable[[], Definition]) -> None:
    definition = build()
    sigma = definition.sigma_max * torch.linspace(0, 1, 21, dtype=torch.float64)
    assert definition.angle(sigma)[0] == 0
    assert definition.angle(sigma).diff().min() > 0
    assert same(definition.sigma_at_angle(definition.angle(sigma)), sigma)


def test_flow_is_the_seeds() -> None:
    x0, xT = draw(5, 2, 2)
    sigma = torch.linspace(0, 1, 5, dtype=torch.float64)
    column = sigma[:, None, None]
    assert torch.equal(FLOW.add_noise(x0, xT, sigma), (1 - column) * x0 + column * xT)
    assert torch.equal(FLOW.target(x0, xT, sigma), xT - x0)
    xt, velocity, then = FLOW.add_noise(x0, xT, sigma), FLOW.target(x0, xT, sigma), sigma / 2
    assert same(FLOW.step(xt, velocity, sigma, then), xt + (then - sigma)[:, None, None] * velocity)


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        (flow("flow_prediction"), lambda a, b: torch.ones_like(a)),
        (ddpm("v_prediction"), lambda a, b: torch.ones_like(a)),
        (trigonometric("v_prediction"), lambda a, b: torch.ones_like(a)),
        *((build("epsilon"), lambda a, b: a) for build in (flow, ddpm, trigonometric)),
        *((build("sample"), lambda a, b: -b) for build in (flow, ddpm, trigonometric)),
        (edm(0.5), lambda a, b: -torch.hypot(b, torch.tensor(0.5)) / 0.5),
    ],
    ids=lambda value: f"{value.name} {value.prediction_type}" if isinstance(value, Definition) else "",
)
def test_determinants(definition: Definition, expected: Callable[[Tensor, Tensor], Tensor]) -> None:
    sigma = definition.sigma_max * torch.linspace(0, 1, 33, dtype=torch.float64)
    a, b = definition.data(sigma)
    assert torch.allclose(definition.determinant(sigma), expected(a, b), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("definition", "sigma", "sentence"),
    [
        (
            flow("epsilon"),
            1.0,
            r"flow matching with prediction type epsilon .* at σ=1: .*determinant .* is 0\.0e\+00",
        ),
        (flow("sample"), 0.0, r"flow matching with prediction type sample cannot be inverted at σ=0: .*determinant"),
        (ddpm("sample"), 0.0, r"DDPM with prediction type sample cannot be inverted at σ=0: .*determinant"),
        (trigonometric("epsilon"), 1.0, r"trigonometric path with prediction type epsilon .* at σ=1: .*determinant"),
    ],
)
def test_a_singular_inversion_says_what_and_where(definition: Definition, sigma: float, sentence: str) -> None:
    x0, xT = draw(2, 2)
    now = torch.tensor([0.5, sigma])
    with pytest.raises(ValueError, match=sentence):
        definition.recover(x0, xT, now)
    with pytest.raises(ValueError, match=sentence):
        definition.step(x0, xT, now, now / 2)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_is_the_papers_preconditioning(sigma_data: float) -> None:
    definition = edm(sigma_data)
    sigma = torch.tensor([0.002, 0.1, 1.0, 30.0, 80.0], dtype=torch.float64)
    square = sigma**2 + sigma_data**2
    c_skip, c_out = sigma_data**2 / square, sigma * sigma_data / square.sqrt()
    # Whatever a network says of whatever it sees: the two are independent here.
    xt, output = draw(5, 3)
    assert same(definition.recover(xt, output, sigma)[0], c_skip[:, None] * xt + c_out[:, None] * output)
    assert same(definition.input_scale(sigma), 1 / square.sqrt())
    assert same(definition.timestep(sigma), sigma.log() / 4)
    assert same(definition.add_noise(xt, output, sigma), xt + sigma[:, None] * output)
    assert definition.timestep(torch.zeros(1)).isfinite().all()


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4, 4), (3, 2, 2, 4, 4)])
@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
def test_every_shape_of_sample_with_one_sigma_each_or_one_for_all(
    build: Callable[[], Definition], shape: tuple[int, ...]
) -> None:
    definition = build()
    x0, xT = draw(*shape)

    def way(x0: Tensor, xT: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        xt, output = definition.add_noise(x0, xT, sigma), definition.target(x0, xT, sigma)
        converted = definition.convert(output, xt, sigma, FLOW)
        return (
            xt,
            output,
            converted,
            *definition.recover(xt, output, sigma),
            definition.step(xt, output, sigma, sigma / 3),
        )

    sigma = definition.sigma_max * torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    for together, *alone in zip(way(x0, xT, sigma), *(way(x0, xT, one) for one in sigma), strict=True):
        assert together.shape == shape
        assert same(together, torch.stack([whole[index] for index, whole in enumerate(alone)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
def test_samples_keep_their_type(build: Callable[[], Definition], dtype: torch.dtype) -> None:
    definition = build()
    x0, xT = (x.to(dtype) for x in draw(2, 5))
    sigma = definition.sigma_max * torch.tensor([0.3, 0.7], dtype=torch.float64)
    xt, output = definition.add_noise(x0, xT, sigma), definition.target(x0, xT, sigma)
    recovered_x0, recovered_xT = definition.recover(xt, output, sigma)
    step, converted = definition.step(xt, output, sigma, sigma / 2), definition.convert(output, xt, sigma, FLOW)
    assert {each.dtype for each in (xt, output, recovered_x0, recovered_xT, step, converted)} == {dtype}
    # On the VE path x_t is some sixty times the noise, so its rounding is.
    size = xt.abs().max().item() * torch.finfo(dtype).eps
    assert torch.allclose(step.double(), definition.add_noise(x0.double(), xT.double(), sigma / 2), atol=8 * size)
    assert torch.allclose(recovered_xT.double(), xT.double(), atol=8 * size)


@pytest.mark.parametrize("betas", [scaled_linear_betas(), linear_betas(), linear_betas(50)], ids=["sd", "ho", "short"])
def test_ddpm_knows_its_table_by_index_by_time_and_by_sigma(betas: Tensor) -> None:
    definition = ddpm(betas=betas)
    table, places = betas_to_sigmas(betas), torch.arange(len(betas), dtype=torch.float64)
    assert torch.equal(definition.timestep(table), places)
    assert torch.allclose(definition.time_to_sigma((places + 1) / len(betas)), table, rtol=1e-12)
    assert torch.equal(definition.timestep(table[7]), places[7])
    a, b = definition.data(table)
    assert torch.allclose(a.square(), (1 - betas).cumprod(0), rtol=1e-11)
    assert torch.equal(b, table)
    ends = definition.time_to_sigma(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [0, definition.sigma_max]
    assert definition.sigma_max == table[-1]
    between = definition.timestep((table[3:4] + table[4:5]) / 2)
    assert between.item() == pytest.approx(3.5)
    # Models know no timestep before 0, though σ goes on to 0.
    assert definition.timestep(torch.tensor([0.0, table[0].item() / 2])).tolist() == [0, 0]


@pytest.mark.parametrize("name", ["flow", "trigonometric", "edm", "ddpm_epsilon"])
def test_time_runs_from_data_to_noise(name: str) -> None:
    definition = find(name)
    sigma = definition.time_to_sigma(torch.linspace(0, 1, 4001, dtype=torch.float64))
    assert sigma[0] == 0
    assert sigma[-1] == definition.sigma_max
    assert sigma.diff().min() > 0


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_built_in_definition_is_found_by_name(name: str) -> None:
    assert find(name).name == DEFINITIONS[name]().name
    assert find(name).prediction_type == DEFINITIONS[name]().prediction_type


OWN = """
from latentflow.diffusion import Definition, flow

fixed = flow("sample")
number = 3


def built() -> Definition:
    return flow("v_prediction")


def needy(much: float) -> Definition:
    return flow()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_definitions.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    # Set, so that what a test imports is taken out again.
    monkeypatch.setitem(sys.modules, "my_definitions", None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "my_definitions")
    return "my_definitions"


@pytest.mark.parametrize(("attribute", "prediction_type"), [("fixed", "sample"), ("built", "v_prediction")])
def test_an_own_definition_is_found_by_module_and_name(own: str, attribute: str, prediction_type: str) -> None:
    assert find(f"{own}:{attribute}").prediction_type == prediction_type


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("floww", "'floww' is neither one of flow, .*edm nor your own as module:name"),
        ("my_definitions:", "'my_definitions:' is neither one of"),
        (":fixed", "':fixed' is neither one of"),
        ("no_such_module:fixed", "the module cannot be imported .*no_such_module"),
        ("my_definitions:missing", "the module my_definitions has no missing"),
        ("my_definitions:number", "is a int, not a latentflow.diffusion.Definition"),
        ("my_definitions:needy", "my_definitions:needy"),
    ],
)
def test_what_is_no_definition_is_refused(own: str, name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find(name)


def test_each_prediction_type_is_its_formula() -> None:
    x0, xT = draw(2, 3)
    sigma = at(0.6)
    a, b = (coefficient[:, None] for coefficient in trigonometric().data(sigma))
    expected = {"flow_prediction": xT - x0, "epsilon": xT, "sample": x0, "v_prediction": a * xT - b * x0}
    assert set(PREDICTIONS) == set(expected)
    for name, target in expected.items():
        assert same(trigonometric(name).target(x0, xT, sigma), target)
    assert math.isclose(a[0].item(), math.cos(0.3 * math.pi))
