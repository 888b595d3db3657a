"""What a step sees: as before for a set of one shape, and right for several shapes, captions and spreads."""

from pathlib import Path

import pytest
import torch
from encoded_sets import Recipe, write_set
from torch import Tensor

from latentflow.data.condition import Condition
from latentflow.data.encoded import EncodedSet
from latentflow.devices import step_generator
from latentflow.diffusion import FLOW
from latentflow.errors import LatentflowError
from latentflow.evaluation import heldout
from latentflow.evaluation.heldout import TIMES, heldout_groups, heldout_loss
from latentflow.params import TrainParams, load
from latentflow.training import loader
from latentflow.training.batches import Batch, Batches
from latentflow.training.ideas import Idea

PARAMS = Path(__file__).parents[2] / "params.yaml"
SQUARE, WIDE = (4, 4, 4), (4, 2, 8)


def params(**changes: object) -> TrainParams:
    values = {"batch_size": 8, "caption_dropout": 0.25} | changes
    return load(PARAMS, [f"train.{name}={value}" for name, value in values.items()]).train


def opened(folder: Path, recipe: Recipe) -> EncodedSet:
    write_set(folder, recipe)
    return EncodedSet.open(folder)


def tensors(batch: Batch) -> dict[str, Tensor]:
    """All of a batch's tensors by name, conditions and what ideas read among them."""
    named = dict(vars(batch))
    told = {name: tensor for name, tensor in vars(named.pop("condition")).items() if tensor is not None}
    return named | named.pop("extra") | told


def equal(first: Batch, second: Batch) -> bool:
    one, other = tensors(first), tensors(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def written_out(encoded: EncodedSet, params: TrainParams, step: int) -> Batch:
    """A batch of a set of one shape, by tensors of the whole split: what a step saw before there were buckets."""
    every = torch.arange(20)
    split, size = encoded.split("train"), params.batch_size
    plain, mirrored = (split.samples(0, every, flip=flag) for flag in (every < 0, every >= 0))
    epochs = [torch.randperm(20, generator=step_generator(params.seed, "order", epoch)) for epoch in range(5)]
    rows = torch.cat(epochs)[step * size : (step + 1) * size]
    generator = step_generator(params.seed, "train", step)
    sigma = Batches(params, FLOW, encoded).density.draw(FLOW, size, generator)
    drop = torch.rand(size, generator=generator) < params.caption_dropout
    flip = torch.rand(size, generator=generator) < 0.5
    noise = torch.randn((size, *SQUARE), generator=generator)
    x0 = torch.where(flip[:, None, None, None], mirrored.latents[rows], plain.latents[rows])
    text = torch.where(drop[:, None, None], encoded.empty.text, plain.text[rows])
    mask = torch.where(drop[:, None], encoded.empty.mask, plain.text_mask[rows])
    sizes = torch.cat([plain.original_size, plain.crop, plain.target_size], 1)[rows]
    return Batch(x0.float(), noise, sigma, Condition(text.float(), mask, sizes=sizes), drop)


def test_a_set_of_one_shape_gives_the_batches_that_it_always_gave(tmp_path: Path) -> None:
    encoded = opened(tmp_path, Recipe({"train": [(SQUARE, 12), (SQUARE, 8)]}))
    batches = Batches(params(), FLOW, encoded)
    for step in (0, 1, 2, 9):
        assert equal(batches.at(step), written_out(encoded, params(), step))


def test_a_batch_is_of_one_shape_and_its_noise_too(tmp_path: Path) -> None:
    encoded = opened(tmp_path, Recipe({"train": [(SQUARE, 16), (WIDE, 8)]}))
    batches = Batches(params(), FLOW, encoded)
    shapes = [tuple(batches.at(step).x0.shape) for step in range(9)]
    assert shapes.count((8, *SQUARE)) == 6
    assert shapes.count((8, *WIDE)) == 3
    assert all(batches.at(step).xT.shape == shapes[step] for step in range(9))


def test_ranks_share_the_batch_of_any_shape(tmp_path: Path) -> None:
    shards = {"train": [(SQUARE, 16), (WIDE, 8), ((4, 2, 2, 2), 9)]}
    encoded = opened(tmp_path, Recipe(shards, captions=2, extra=("latents_flipped", "logvar", "logvar_flipped")))
    for step in range(8):
        whole = Batches(params(), FLOW, encoded).at(step)
        parts = [Batches(params(), FLOW, encoded, slice(rank, None, 2)).at(step) for rank in range(2)]
        first, second = (tensors(part) for part in parts)
        for name, tensor in tensors(whole).items():
            assert torch.equal(torch.stack([first[name], second[name]], dim=1).flatten(0, 1), tensor), name


def test_the_spread_of_the_posterior_adds_noise_of_its_size_and_moves_nothing_else(tmp_path: Path) -> None:
    still = opened(tmp_path / "still", Recipe({"train": [(SQUARE, 400)]}, extra=()))
    moving = opened(tmp_path / "moving", Recipe({"train": [(SQUARE, 400)]}, extra=("logvar",)))
    chosen = params(batch_size=400, caption_dropout=0.0)
    first, second = (Batches(chosen, FLOW, encoded).at(3) for encoded in (still, moving))
    assert torch.equal(first.xT, second.xT)
    assert torch.equal(first.sigma, second.sigma)
    _, rows = Batches(chosen, FLOW, moving).order.at(3)
    samples = moving.split("train").samples(0, rows)
    assert samples.logvar is not None
    added = (second.x0 - samples.latents) / (samples.logvar / 2).exp()
    assert abs(added.mean()) < 0.03
    assert abs(added.std() - 1) < 0.03
    assert not torch.equal(added, second.xT)


def test_every_caption_of_a_record_is_seen(tmp_path: Path) -> None:
    encoded = opened(tmp_path, Recipe({"train": [(SQUARE, 8)]}, captions=3))
    batches = Batches(params(caption_dropout=0.0), FLOW, encoded)
    seen = {tuple(row.tolist()) for step in range(30) for row in batches.at(step).text[:, 0, :2]}
    assert len(seen) == 24


class Reader(Idea):
    reads = ("features", "crop")


class Other(Idea):
    reads = ("features",)


def test_what_ideas_read_comes_with_its_record(tmp_path: Path) -> None:
    recipe = Recipe({"train": [(SQUARE, 12), (WIDE, 8)]}, extra=("latents_flipped", "features", "features_flipped"))
    encoded = opened(tmp_path, recipe)
    ideas = [Reader(1.0, None, 0), Other(1.0, None, 0)]
    for step in range(4):
        batches = Batches(params(), FLOW, encoded, ideas=ideas)
        batch, (bucket, rows) = batches.at(step), batches.order.at(step)
        assert list(batch.extra) == ["features", "crop"]
        plain, mirrored = (
            batches.split.samples(bucket, rows, flip=torch.full((8,), flag), extra=("features",))
            for flag in (False, True)
        )
        flipped = (batch.x0 == mirrored.latents).flatten(1).all(1)[:, None, None, None]
        assert torch.equal(
            batch.extra["features"], torch.where(flipped, *(s.extra["features"] for s in (mirrored, plain)))
        )
        assert torch.equal(batch.extra["crop"], plain.crop)
        assert equal(Batches(params(), FLOW, encoded).at(step), Batch(**vars(batch) | {"extra": {}}))


def test_a_key_that_an_idea_reads_and_some_shard_lacks_is_named(tmp_path: Path) -> None:
    encoded = opened(tmp_path, Recipe({"train": [(SQUARE, 12)]}))
    with pytest.raises(LatentflowError, match=r"ideas test_batches:Other reads 'features' .* latents/train-4x4-00000"):
        Batches(params(), FLOW, encoded, ideas=[Other(1.0, None, 0)])


def test_a_batch_says_whose_caption_was_dropped_and_can_be_parted(tmp_path: Path) -> None:
    encoded = opened(tmp_path, Recipe({"train": [(SQUARE, 20)]}, extra=("features",)))
    batch = Batches(params(caption_dropout=0.5), FLOW, encoded, ideas=[Reader(1.0, None, 0)]).at(1)
    assert 0 < batch.dropped.sum() < 8
    assert torch.equal(batch.dropped, ~batch.text.any(dim=(1, 2)))
    _, second = batch.parts(2)
    assert torch.equal(second.text, batch.text[4:])
    assert torch.equal(second.dropped, batch.dropped[4:])
    assert torch.equal(second.extra["crop"], batch.extra["crop"][4:])


@pytest.mark.parametrize("count", [0, 2])
def test_batches_come_ahead_in_order_and_a_fault_at_its_step(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = opened(tmp_path, Recipe({"train": [(SQUARE, 20)]}))
    batches = Batches(params(), FLOW, encoded)
    wanted = [batches.at(step) for step in range(3, 9)]
    with loader.ahead(batches, range(3, 9), count) as ready:
        assert all(equal(found, batch) for found, batch in zip(ready, wanted, strict=True))

    at = Batches.at

    def faulty(self: Batches, step: int) -> Batch:
        if step == 5:
            raise LatentflowError("step five")
        return at(self, step)

    monkeypatch.setattr(Batches, "at", faulty)
    with loader.ahead(batches, range(3, 9), count) as ready:
        assert equal(next(ready), wanted[0])
        assert equal(next(ready), wanted[1])
        with pytest.raises(LatentflowError, match="step five"):
            next(ready)


def test_a_remote_sets_shards_come_before_their_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("LATENTFLOW_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "set", Recipe({"train": [(SQUARE, 16)] * 64}, text_rows=16))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "set"), "/ahead", recursive=True)
    chosen = params(shuffle_window=2)
    here, there = (Batches(chosen, FLOW, EncodedSet.open(place)) for place in (tmp_path / "set", "memory://ahead"))
    with loader.ahead(there, range(128)) as ready:
        assert equal(next(ready), here.at(0))
        for step in range(1, 40):
            assert equal(next(ready), here.at(step))
    # Of 128 files: what 40 steps of 8 rows need, what is asked for ahead, the index and the prompts.
    assert 40 <= len(list((tmp_path / "cache" / "files").glob("*/*"))) < 80
    memory.rm("/ahead", recursive=True)


def zero(xt: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(xt)


def test_the_held_out_loss_goes_through_all_shapes(tmp_path: Path) -> None:
    encoded = opened(tmp_path, Recipe({"test": [(SQUARE, 7), (WIDE, 5)]}))
    groups = heldout_groups(encoded.split("test"), torch.device("cpu"))
    loss = heldout_loss(zero, groups, FLOW, TIMES, 0, 4)
    alone = [heldout_loss(zero, [group], FLOW, TIMES, 0, 4) for group in groups]
    assert loss.samples == 12
    assert abs(loss.mean - 2) < 0.5
    # The first group's samples have the same numbers in both, and so the same noise.
    assert loss.mean != pytest.approx((7 * alone[0].mean + 5 * alone[1].mean) / 12, rel=1e-9)
    assert heldout_loss(zero, groups[:1], FLOW, TIMES, 0, 4) == alone[0]


def test_a_large_split_is_measured_on_the_ids_of_smallest_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "CAP", 6)
    encoded = opened(tmp_path, Recipe({"test": [(SQUARE, 7), (WIDE, 5)]}))
    split = encoded.split("test")
    read: list[tuple[int, list[int]]] = []
    samples = split.samples
    monkeypatch.setattr(
        type(split), "samples", lambda self, bucket, rows: read.append((bucket, rows.tolist())) or samples(bucket, rows)
    )
    groups = heldout_groups(split, torch.device("cpu"))
    assert heldout_loss(zero, groups, FLOW, [0.5], 0, 100).samples == 6
    ids = [name for bucket, rows in read for name in split.ids(bucket, torch.tensor(rows))]
    from hashlib import sha256

    every = [f"r{number}" for number in range(12)]
    chosen = sorted(every, key=lambda name: sha256(name.encode()).digest())[:6]
    assert ids == [name for name in every if name in chosen]
