"""Reading the encoded set: the right rows of the right shards, captions by choice, mirrored rows, and what is wrong."""

import hashlib
from pathlib import Path

import pytest
import torch
from encoded_sets import Recipe, write_set
from safetensors.torch import load_file

from latentflow.data.encoded import EncodedSet
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder
from latentflow.manifest import EncodedManifest

WIDE, TALL = (4, 2, 6), (4, 6, 2)
CLIP = (4, 3, 2, 2)
# The order of the manifest: by split, then shape; a bucket's shards are neighbours there, but need not be.
SHARDS = {"train": [(WIDE, 5), (WIDE, 3), (TALL, 4), (CLIP, 2)], "validation": [(WIDE, 2)]}
EXTRA = ("latents_flipped", "logvar", "logvar_flipped")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path / "encoded", Recipe(SHARDS, captions=3, text_rows=10, extra=EXTRA, dtype=torch.bfloat16))
    return tmp_path / "encoded"


def joined(folder: Path, kind: str, key: str, split: str = "", shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """A key of the shards of one kind, split and shape, read whole."""
    shards = [s for s in EncodedManifest.read(folder).shards if (s.kind, s.split) == (kind, split)]
    return torch.cat([load_file(folder / s.file)[key] for s in shards if shape in (None, s.shape)])


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def test_rows_are_those_of_the_shards_in_their_stored_type(folder: Path) -> None:
    split = EncodedSet.open(folder).split("train")
    assert len(split) == 14
    assert [(bucket.shape, bucket.count, bucket.counts) for bucket in split.buckets] == [
        (WIDE, 8, (5, 3)),
        (TALL, 4, (4,)),
        (CLIP, 2, (2,)),
    ]
    text, mask = joined(folder, "text", "text"), joined(folder, "text", "text_mask")
    first = 0
    for number, (bucket, rows) in enumerate(zip(split.buckets, ([7, 0, 4, 5, 0], [2, 2], [1, 0]), strict=True)):
        samples = split.samples(number, torch.tensor(rows))
        assert samples.latents.dtype == torch.bfloat16
        for key in ("latents", "logvar", "original_size", "crop", "target_size"):
            assert torch.equal(getattr(samples, key), joined(folder, "latents", key, "train", bucket.shape)[rows])
        captions = [3 * (first + row) for row in rows]
        assert torch.equal(samples.text, text[captions])
        assert torch.equal(samples.text_mask, mask[captions])
        assert split.ids(number, torch.tensor(rows)) == [f"r{first + row}" for row in rows]
        first += bucket.count


def test_shards_of_a_bucket_need_not_be_neighbours(tmp_path: Path) -> None:
    write_set(tmp_path, Recipe({"train": [(WIDE, 2), (TALL, 3), (WIDE, 2)]}))
    split = EncodedSet.open(tmp_path).split("train")
    assert split.ids(0, torch.arange(4)) == ["r0", "r1", "r5", "r6"]
    text = joined(tmp_path, "text", "text")
    assert torch.equal(split.samples(0, torch.arange(4)).text, text[[0, 1, 5, 6]])


def test_large_rows_come_from_several_shards(tmp_path: Path) -> None:
    shape = (4, 16, 16)
    write_set(tmp_path, Recipe({"train": [(shape, 3)] * 4}))
    rows = torch.tensor([11, 0, 5, 5, 9, 3])
    found = EncodedSet.open(tmp_path).split("train").samples(0, rows).latents
    assert torch.equal(found, joined(tmp_path, "latents", "latents", "train")[rows])


def test_choice_picks_one_of_a_records_captions(folder: Path) -> None:
    split = EncodedSet.open(folder).split("train")
    text = joined(folder, "text", "text")
    choice = torch.tensor([0.0, 0.33, 0.34, 0.99, torch.finfo(torch.float32).eps - 1]).abs()
    found = split.samples(0, torch.tensor([1, 1, 1, 1, 0]), choice).text
    assert torch.equal(found, text[[3, 3, 4, 5, 2]])


def test_flip_picks_the_mirrored_latents_and_their_spread_row_by_row(folder: Path) -> None:
    split = EncodedSet.open(folder).split("train")
    rows, flip = torch.tensor([6, 1, 6]), torch.tensor([True, False, False])
    samples = split.samples(0, rows, flip=flip)
    for key in ("latents", "logvar"):
        plain, mirrored = (joined(folder, "latents", name, "train", WIDE) for name in (key, f"{key}_flipped"))
        assert torch.equal(getattr(samples, key), torch.stack([mirrored[6], plain[1], plain[6]]))


def test_a_set_without_mirrored_latents_or_spread_has_none(tmp_path: Path) -> None:
    write_set(tmp_path, Recipe({"train": [(WIDE, 3)]}, extra=()))
    samples = EncodedSet.open(tmp_path).split("train").samples(0, torch.arange(3), flip=torch.ones(3, dtype=torch.bool))
    assert torch.equal(samples.latents, joined(tmp_path, "latents", "latents", "train"))
    assert samples.logvar is None


def test_what_is_read_may_be_written_over(folder: Path) -> None:
    split = EncodedSet.open(folder).split("train")
    first = split.samples(0, torch.arange(4))
    kept = first.text.clone()
    first.text.zero_()
    assert torch.equal(split.samples(0, torch.arange(4)).text, kept)


def test_the_empty_caption_and_the_sample_prompts(folder: Path) -> None:
    encoded = EncodedSet.open(folder)
    assert encoded.empty.text.shape == (1, 3, 16)
    assert not encoded.empty.text.any()
    assert encoded.prompts.text.shape == (2, 3, 16)
    assert encoded.prompts.mask.shape == (2, 3)


def test_shards_may_lie_in_several_folders(folder: Path, tmp_path: Path) -> None:
    whole = EncodedSet.open(folder).split("train").samples(0, torch.arange(8))
    for number, shard in enumerate(EncodedManifest.read(folder).shards):
        target = tmp_path / f"part{number % 2}" / shard.file
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / shard.file).rename(target)
    parts = [tmp_path / "part0", str(tmp_path / "part1")]
    found = EncodedSet.open(folder, parts).split("train").samples(0, torch.arange(8))
    assert torch.equal(found.latents, whole.latents)
    assert torch.equal(found.text, whole.text)
    with pytest.raises(LatentflowError, match=r"latents/.* is missing in .*encoded; run `latentflow encode` again"):
        EncodedSet.open(folder).split("train").samples(0, torch.arange(8))


def test_a_damaged_shard_is_named_with_its_digest_when_it_is_first_used(folder: Path) -> None:
    shard = EncodedManifest.read(folder).shards[1]
    damaged(folder / shard.file)
    split = EncodedSet.open(folder).split("train")
    split.samples(0, torch.tensor([0, 4]))
    with pytest.raises(LatentflowError, match=f"{shard.file} is not the file that was encoded .*{shard.sha256}"):
        split.samples(0, torch.tensor([0, 5]))


def test_a_digest_is_taken_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: taken.append(file.name) or digest(file, kind))
    encoded = EncodedSet.open(folder)
    assert len(taken) == 1  # the prompts
    for _ in range(3):
        encoded.split("train").samples(0, torch.arange(8))
    assert len(taken) == len(set(taken))


@pytest.mark.parametrize("name", ["prompts.safetensors", "index.parquet"])
def test_damaged_small_files_are_named(folder: Path, name: str) -> None:
    damaged(folder / name)
    with pytest.raises(LatentflowError, match=f"{name} is not the file that was encoded"):
        EncodedSet.open(folder).split("train")


def test_rows_and_splits_that_there_are_not(folder: Path) -> None:
    encoded = EncodedSet.open(folder)
    with pytest.raises(LatentflowError, match="holds no records in the test split"):
        encoded.split("test")
    for rows in ([8], [-1, 3]):
        with pytest.raises(LatentflowError, match="were asked for, the encoded set has 8"):
            encoded.split("train").samples(0, torch.tensor(rows))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "empty"):
        pass
    with pytest.raises(LatentflowError, match="run `latentflow encode` first"):
        EncodedSet.open(tmp_path / "empty")
