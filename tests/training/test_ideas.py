"""Ideas: their formulas, the same for any number of processes, nothing left where they do not act, and one's own."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from encoded_sets import Recipe, write_set
from torch import Tensor, nn

from latentflow import denoisers
from latentflow.data.condition import Condition
from latentflow.data.encoded import EncodedSet
from latentflow.denoisers import FAMILIES, Denoiser
from latentflow.diffusion import FLOW, Definition
from latentflow.diffusion import find as find_definition
from latentflow.errors import LatentflowError, ParamsError
from latentflow.params import load
from latentflow.training import ideas
from latentflow.training.batches import Batch, Batches
from latentflow.training.ideas import Forward, Idea, build
from latentflow.training.ideas.tread import Tread, route

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"


def denoiser(layers: int = 6, family: str = "pixart", definition: Definition = FLOW) -> Denoiser:
    """A denoiser of latents (4, 8, 8), which are 16 tokens."""
    sizes = [f"model.pixart.{name}" for name in (f"layers={layers}", "heads=2", "head_dim=8", "patch_size=2")]
    model = load(
        PARAMS,
        [
            f"model.denoiser={family}",
            *sizes,
            "model.auraflow.heads=1",
            "model.unet.channels=[32]",
            "model.unet.attention=[true]",
        ],
    ).model
    return Denoiser(FAMILIES[family], denoisers.build(model, [4, 8, 8], 16, seed=0), definition)


def batch(count: int = 6, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn((count, *shape), generator=generator)

    sigma = torch.rand(count, generator=generator, dtype=torch.float64)
    mask = torch.ones(count, 3, dtype=torch.bool)
    x0, xT = normal(4, 8, 8), normal(4, 8, 8)
    told = Condition(normal(3, 16), mask)
    return Batch(x0, xT, sigma, told, torch.zeros(count, dtype=torch.bool))


def some(batch: Batch, which: slice) -> Batch:
    condition = batch.condition.each(lambda rows: rows[which])
    return Batch(batch.x0[which], batch.xT[which], batch.sigma[which], condition, batch.dropped[which])


def seen(used: Denoiser, batch: Batch, step: int = 0) -> Forward:
    definition = used.definition
    output = used.predict(definition.add_noise(batch.x0, batch.xT, batch.sigma), batch.sigma, batch.condition)
    return Forward(step, batch, output, definition.target(batch.x0, batch.xT, batch.sigma))


def loss(used: Denoiser, own: list[Idea], batch: Batch, step: int = 0, places: Tensor | None = None) -> Tensor:
    """A forward pass as the loop makes it; the batch is the global one unless its ``places`` are given."""
    count = len(batch.x0)
    for idea in own:
        idea.before(step, torch.arange(count) if places is None else places, count if places is None else 2 * count)
    passed = seen(used, batch, step)
    terms = (idea.loss(passed) for idea in own)
    return (passed.output - passed.target).square().mean() + sum(term for term in terms if term is not None)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("definition", ["flow", "ddpm_v_prediction"])
def test_contrastive_moves_away_from_the_neighbours_target(definition: str) -> None:
    used = denoiser(definition=find_definition(definition))
    (idea,) = build({"contrastive": 0.05}, used, 0)
    given = batch()
    given.dropped[1] = True
    given.text[4] = given.text[3]
    with torch.no_grad():
        passed = seen(used, given)
    wanted = 0.0
    for number, neighbour in ((0, 5), (3, 2), (5, 4)):
        sigma = given.sigma[number]
        data, noise = used.definition.model(sigma)
        target = float(data) * given.x0[neighbour] + float(noise) * given.xT[neighbour]
        wanted -= 0.05 * float((passed.output[number] - target).square().mean()) / 6
    assert float(idea.loss(passed)) == pytest.approx(wanted, rel=1e-5)


def test_contrastive_weighs_on_the_gradient_as_written() -> None:
    (idea,) = build({"contrastive": 0.25}, denoiser(), 0)
    output = torch.zeros(2, 4, 8, 8, requires_grad=True)
    given = batch(2)
    target = FLOW.target(given.x0, given.xT, given.sigma)
    total = (output - target).square().mean() + idea.loss(Forward(0, given, output, target))
    total.backward()
    written = 2 * ((output - target) - 0.25 * (output - target.flip(0))) / output.numel()
    assert torch.allclose(output.grad, written, atol=1e-8)


def test_contrastive_needs_a_pair() -> None:
    (idea,) = build({"contrastive": 0.05}, denoiser(), 0)
    with pytest.raises(LatentflowError, match=r"this one has 1: raise train\.per_device_batch_size"):
        idea.before(0, torch.tensor([3]), 8)


@pytest.mark.parametrize(
    ("blocks", "skipped"),
    [(3, (1, 2)), (4, (1, 3)), (6, (1, 4)), (9, (1, 6)), (12, (2, 8)), (28, (2, 24))],
)
def test_tread_leaves_early_and_late_blocks_whole(blocks: int, skipped: tuple[int, int]) -> None:
    assert route(blocks) == range(*skipped)


def watched(used: Denoiser) -> dict[int, list[Tensor]]:
    """What goes into each block, and comes out of the last, from now on."""
    entered: dict[int, list[Tensor]] = {}
    blocks = used.model.transformer_blocks
    for number, block in enumerate(blocks):
        block.attn1.register_forward_pre_hook(
            lambda module, inputs, number=number: entered.setdefault(number, []).append(inputs[0])
        )
    blocks[-1].register_forward_hook(lambda module, inputs, output: entered.setdefault(len(blocks), []).append(output))
    return entered


@pytest.mark.parametrize(("share", "staying"), [(0.5, 8), (0.75, 4), (0.1, 14), (0.99, 1)])
def test_tread_sends_its_share_of_the_tokens_past_the_middle(share: float, staying: int) -> None:
    used = denoiser()
    own = build({"tread": share}, used, 0)
    entered = watched(used)
    loss(used, own, batch())
    assert [entered[block][0].shape[1] for block in range(7)] == [16, staying, staying, staying, 16, 16, 16]


def chosen(used: Denoiser, own: list[Idea], batch: Batch, step: int, places: Tensor | None = None) -> list[set[int]]:
    """Per sample the tokens that do not skip blocks 1 to 3: the others come out of them as they came out of block 0."""
    seen: list[Tensor] = []
    blocks = used.model.transformer_blocks
    hooks = [
        blocks[number].register_forward_hook(lambda block, inputs, output: seen.append(output)) for number in (0, 3)
    ]
    loss(used, own, batch, step, places)
    for hook in hooks:
        hook.remove()
    before, after = seen
    return [set(torch.nonzero(changed).flatten().tolist()) for changed in (before != after).any(2)]


def test_tread_draws_the_same_tokens_for_any_number_of_processes() -> None:
    used = denoiser()
    own = build({"tread": 0.5}, used, 3)
    whole = batch()
    wanted = chosen(used, own, whole, step=7)
    assert all(len(tokens) == 8 for tokens in wanted)
    assert len({frozenset(tokens) for tokens in wanted}) == 6
    for rank in range(2):
        part = some(whole, slice(rank, None, 2))
        assert chosen(used, own, part, 7, torch.arange(6)[rank::2]) == wanted[rank::2]
    assert chosen(used, own, whole, step=8) != wanted
    assert chosen(used, build({"tread": 0.5}, denoiser(), 4), whole, step=7) != wanted


def test_tread_gives_the_gradient_of_any_parts() -> None:
    used = denoiser()
    own = build({"tread": 0.5}, used, 0)
    whole = batch()
    loss(used, own, whole, 5).backward()
    at_once = gradients(used.model)
    for part in (slice(0, 3), slice(3, 6)):
        (loss(used, own, some(whole, part), 5, torch.arange(6)[part]) / 2).backward()
    in_parts = gradients(used.model)
    assert at_once.keys() == in_parts.keys() == dict(used.model.named_parameters()).keys()
    for name, gradient in at_once.items():
        assert gradient.any(), name
        assert torch.allclose(gradient, in_parts[name], rtol=1e-3, atol=1e-6), name


def test_tread_is_computed_again_with_the_same_tokens() -> None:
    used = denoiser()
    own = build({"tread": 0.5, "contrastive": 0.05}, used, 0)
    plain = loss(used, own, batch())
    plain.backward()
    wanted = gradients(used.model)
    used.model.enable_gradient_checkpointing()
    again = loss(used, own, batch())
    # A validation in between, of an average that has the hooks too, changes nothing.
    seen(Denoiser(used.family, copy.deepcopy(used.model).eval(), FLOW), batch(3))
    again.backward()
    assert torch.equal(plain, again)
    for name, gradient in gradients(used.model).items():
        assert torch.equal(gradient, wanted[name]), name


def test_tread_can_be_compiled_block_by_block() -> None:
    used = denoiser(layers=4)
    own = build({"tread": 0.5}, used, 0)
    wanted = [loss(used, own, batch(), step).item() for step in range(3)]
    for block in used.model.transformer_blocks:
        block.compile(backend="eager", fullgraph=True)
    assert [loss(used, own, batch(), step).item() for step in range(3)] == pytest.approx(wanted, rel=1e-5)
    torch._dynamo.reset()


def test_tread_does_nothing_when_pictures_are_drawn() -> None:
    used, bare = denoiser(), denoiser()
    own = build({"tread": 0.5}, used, 0)
    loss(used, own, batch())
    with torch.no_grad():
        assert not torch.equal(seen(used, batch()).output, seen(bare, batch()).output)
        used.model.eval()
        bare.model.eval()
        assert torch.equal(seen(used, batch()).output, seen(bare, batch()).output)
        average = Denoiser(used.family, copy.deepcopy(used.model), FLOW)
        assert torch.equal(seen(average, batch()).output, seen(bare, batch()).output)


def test_tread_routes_in_half_precision() -> None:
    used = denoiser()
    own = build({"tread": 0.5}, used, 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss(used, own, batch()).backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(used.model).values())


@pytest.mark.parametrize("family", ["unet", "auraflow"])
def test_tread_refuses_other_families(family: str) -> None:
    with pytest.raises(LatentflowError, match=r"routes the tokens of a PixArtTransformer2DModel, and this model is a "):
        build({"tread": 0.5}, denoiser(family=family), 0)


def test_tread_refuses_too_few_blocks() -> None:
    with pytest.raises(LatentflowError, match="at least 3 blocks, and this one has 2"):
        build({"tread": 0.5}, denoiser(layers=2), 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{tread: 1.0}", "tread needs a number above 0 and below 1, found 1"),
        ("{contrastive: -0.1}", "contrastive needs a number above 0 and below 1, found -0.1"),
        ("{contrastiv: 0.1}", "'contrastiv' is neither one of contrastive, tread nor your own as module:Class"),
        ('{"nowhere:Thing": 1}', "there is no module nowhere; add its folder to PYTHONPATH"),
    ],
)
def test_a_fault_is_found_with_the_parameters(given: str, words: str) -> None:
    with pytest.raises(ParamsError) as caught:
        load(PARAMS, [f"train.ideas={given}"])
    assert "train.ideas" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("contrastiv", r"train\.ideas: 'contrastiv' is neither one of contrastive, tread"),
        ("encoded_sets:Recipe", r"encoded_sets:Recipe is no subclass of latentflow\.training\.ideas\.Idea"),
        ("encoded_sets:Nothing", "the module encoded_sets has no Nothing"),
        ("nowhere:Thing", r"nowhere:Thing: the module cannot be imported \(No module named 'nowhere'\)"),
    ],
)
def test_an_idea_that_is_none_is_refused(name: str, words: str) -> None:
    with pytest.raises(LatentflowError, match=words):
        build({name: 1.0}, denoiser(), 0)


def test_ideas_are_checked_without_torch() -> None:
    program = (
        "import sys\nsys.modules['torch'] = None\n"
        "from pathlib import Path\nfrom latentflow.params import load\n"
        f"load(Path({str(PARAMS)!r}), ['train.ideas={{{', '.join(f'{name}: 0.5' for name in ideas.names())}}}'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ideas that the documentation shows, as modules."""
    page = (ROOT / "docs" / "ideas.md").read_text()
    found = re.findall(r"```python\n(# (\w+)\.py.*?)```", page, re.DOTALL)
    assert [name for _, name in found] == ["direction", "alignment"]
    for code, name in found:
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("examples")
def test_the_shorter_example_of_the_documentation() -> None:
    assert load(PARAMS, ['train.ideas={"direction:Direction": 0.5}']).train.ideas == {"direction:Direction": 0.5}
    with pytest.raises(LatentflowError, match="direction:Direction needs a number above 0 and below 10, found 11"):
        build({"direction:Direction": 11}, denoiser(), 0)
    (idea,) = build({"direction:Direction": 0.5}, denoiser(), 0)
    given = batch(2)
    target = FLOW.target(given.x0, given.xT, given.sigma)
    output = torch.cat([3 * target[:1], -target[1:]])
    assert float(idea.loss(Forward(0, given, output, target))) == pytest.approx(0.5 * (0 + 2) / 2)


@pytest.mark.usefixtures("examples")
def test_the_longer_example_trains_a_module_along_with_what_was_encoded(tmp_path: Path) -> None:
    used = denoiser()
    own = build({"alignment:Alignment": 0.5, "tread": 0.5}, used, 0)
    alignment, tread = own
    assert str(alignment) == "alignment:Alignment"
    assert isinstance(tread, Tread)
    shards = {"train": [((4, 4, 4), 32)]}
    write_set(tmp_path / "without", Recipe(shards))
    with pytest.raises(LatentflowError, match=r"train\.ideas alignment:Alignment reads 'features' of every record"):
        Batches(load(PARAMS).train, FLOW, EncodedSet.open(tmp_path / "without"), ideas=own)
    write_set(tmp_path / "with", Recipe(shards, extra=("features",)))
    params = load(PARAMS, ["train.batch_size=16"]).train
    batches = Batches(params, FLOW, EncodedSet.open(tmp_path / "with"), ideas=own)
    assert alignment.module is not None
    start = alignment.module.weight.detach().clone()
    assert torch.equal(start, build({"alignment:Alignment": 0.5}, denoiser(), 0)[0].module.weight)
    optimizer = torch.optim.AdamW([*used.model.parameters(), *alignment.module.parameters()], 0.003)
    cosines = []
    for step in range(40):
        given = batches.at(step)
        for idea in own:
            idea.before(step, torch.arange(16), 16)
        passed = seen(used, given, step)
        term = alignment.loss(passed)
        ((passed.output - passed.target).square().mean() + term).backward()
        optimizer.step()
        optimizer.zero_grad()
        cosines.append(-2 * term.item())
    assert cosines[0] < 0.05
    assert cosines[-1] > 0.12
    assert not torch.equal(alignment.module.weight, start)
