"""encode: nothing twice, nothing lost, the same bytes however the work is cut."""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from encoding import build_autoencoder, build_text_encoder, inputs, make_records, write_pictures
from ingest_helpers import clip
from object_store import s3_bucket
from safetensors.torch import load_file, save_file

from latentflow.data.encoded import EncodedSet
from latentflow.encoders import vae as vae_room
from latentflow.encoders.text import TextEncoder
from latentflow.errors import LatentflowError
from latentflow.manifest import EncodedManifest
from latentflow.steps import encode
from latentflow.steps.encode import Part

COUNT = 24


@dataclass
class World:
    """Folders of one case, and what the encoders were asked since ``asked`` was cleared."""

    root: Path
    autoencoder: Path
    text: Path
    asked: dict[str, list[int]] = field(default_factory=lambda: {"pictures": [], "captions": []})

    def records(self, count: int = COUNT, **kwargs: list[str]) -> Path:
        name = f"{count}-{hashlib.sha256(str(kwargs).encode()).hexdigest()[:6]}"
        folder = self.root / "records" / name
        return (
            folder
            if folder.is_dir()
            else make_records(write_pictures(self.root / "pictures" / name, count, **kwargs), folder)
        )

    def encode(self, records: Path, name: str, *overrides: str) -> EncodedManifest:
        for calls in self.asked.values():
            calls.clear()
        return encode.run(inputs(self.text, *overrides), records, self.autoencoder, self.root / name)

    def rows(self) -> dict[str, int]:
        """How many rows were encoded, the padding of batches included."""
        return {kind: sum(calls) for kind, calls in self.asked.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return build_autoencoder(root / "autoencoder"), build_text_encoder(root / "text")


@pytest.fixture
def world(models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, *models)
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    posterior, hidden = vae_room.posterior, TextEncoder.encode

    def counted_posterior(vae, pixels):
        made.asked["pictures"].append(len(pixels))
        return posterior(vae, pixels)

    def counted_hidden(self, captions):
        made.asked["captions"].append(len(captions))
        return hidden(self, captions)

    monkeypatch.setattr(vae_room, "posterior", counted_posterior)
    monkeypatch.setattr(TextEncoder, "encode", counted_hidden)
    return made


def fresh_store(world: World, monkeypatch: pytest.MonkeyPatch, name: str = "other") -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(world.root / name))


def contents(folder: Path) -> dict[str, str]:
    """Every file but the notes of parts, by its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("part-")
    }


def test_the_files_hold_what_their_description_says(world: World) -> None:
    records = world.records()
    manifest = world.encode(records, "encoded", "encode.flip=true")
    out = world.root / "encoded"
    assert sum(manifest.counts.values()) == COUNT
    index = pq.read_table(out / "index.parquet").to_pylist()
    table = {row["id"]: row for row in pq.read_table(records / "records.parquet").to_pylist()}
    text = [shard for shard in manifest.shards if shard.kind == "text"]
    keys = torch.cat([load_file(out / shard.file)["source"] for shard in text])
    row = 0
    for shard in manifest.shards:
        if shard.kind == "text":
            continue
        tensors = load_file(out / shard.file)
        assert set(tensors) == {"latents", "latents_flipped", "original_size", "crop", "target_size", "source"}
        for number in range(shard.count):
            record = table[index[row]["id"]]
            assert record["split"] == shard.split
            assert tensors["source"][number].numpy().tobytes() == record["sha256"]
            assert tensors["original_size"][number].tolist() == [record["height"], record["width"]]
            height, width = tensors["target_size"][number].tolist()
            assert tuple(tensors["latents"].shape[2:]) == (height // 2, width // 2)
            (caption,) = index[row]["captions"]
            assert keys[caption].numpy().tobytes() == hashlib.sha256(record["captions"][0].encode()).digest()
            row += 1
    assert row == COUNT
    shapes = {shard.shape[1:] for shard in manifest.shards if shard.kind == "latents"}
    assert shapes == {(8, 8)}


def test_buckets(world: World) -> None:
    manifest = world.encode(world.records(), "encoded", "encode.bucket_step=4")
    shapes = {shard.shape[1:] for shard in manifest.shards if shard.kind == "latents"}
    # Of 20x20, 20x40, 40x20 and 18x25 (height, width), in latents of a VAE of factor 2.
    assert shapes == {(8, 8), (6, 10), (10, 6)}


def test_crops_and_statistics(world: World) -> None:
    manifest = world.encode(world.records(), "encoded")
    shards = [s for s in manifest.shards if s.split == "train"]
    tensors = [load_file(world.root / "encoded" / shard.file) for shard in shards]
    latents = torch.cat([one["latents"] for one in tensors]).double()
    torch.testing.assert_close(torch.tensor(manifest.latent_mean), latents.mean((0, 2, 3)).float())
    torch.testing.assert_close(torch.tensor(manifest.latent_std), latents.std((0, 2, 3)).float())
    sizes, crops = (torch.cat([one[name] for one in tensors]).tolist() for name in ("original_size", "crop"))
    # Scaled to cover 16x16: of 20x40 (height, width) that is 16x32, cut 8 pixels from the left.
    assert [0, 8] in [crop for size, crop in zip(sizes, crops, strict=True) if size == [20, 40]]
    assert [8, 0] in [crop for size, crop in zip(sizes, crops, strict=True) if size == [40, 20]]


def test_more_pictures_encode_only_themselves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.encode(world.records(20), "encoded")
    grown = world.encode(world.records(), "encoded")
    # Padded batches: 4 new pictures in up to three splits. Their captions were there before.
    assert 4 <= world.rows()["pictures"] <= 12
    assert world.rows()["captions"] == 0
    fresh_store(world, monkeypatch)
    assert world.encode(world.records(), "anew").digest == grown.digest
    assert world.rows()["pictures"] >= COUNT


def test_a_shard_that_is_there_needs_no_model(world: World) -> None:
    first = world.encode(world.records(), "encoded")
    again = world.encode(world.records(), "again")
    assert again == first
    assert world.rows() == {"pictures": 0, "captions": 0}


def test_changed_captions_encode_text_only(world: World) -> None:
    world.encode(world.records(), "encoded")
    world.encode(world.records(captions=["a red cat", "a dog"]), "changed")
    assert world.rows() == {"pictures": 0, "captions": 4}


def test_changed_buckets_encode_latents_only(world: World) -> None:
    world.encode(world.records(), "encoded")
    world.encode(world.records(), "changed", "encode.bucket_step=4")
    # Every fourth picture is square and a bucket of its own size was there before.
    assert 0 < world.rows()["pictures"] < COUNT + 12
    assert world.rows()["captions"] == 0


def test_equal_captions_and_pictures_are_encoded_once(world: World) -> None:
    records = world.records(captions=["a red cat"])
    manifest = world.encode(records, "encoded")
    assert sum(shard.count for shard in manifest.shards if shard.kind == "text") == 1


def test_explain(world: World) -> None:
    def sentences(records: Path, *overrides: str) -> list[str]:
        return encode.explain(inputs(world.text, *overrides), records, world.autoencoder)

    records = world.records(20)
    assert all("the work store is empty" in line for line in sentences(records))
    world.encode(records, "encoded")
    assert sentences(records) == [
        "latents 16x16: all 20 rows are in the work store; nothing to encode.",
        "text: all 12 rows are in the work store; nothing to encode.",
    ]
    latents, text = sentences(world.records())
    assert latents.startswith("latents 16x16: 4 of 24 rows in ")
    assert latents.endswith("to encode, because they are new to these settings; the others are in the work store.")
    assert "nothing to encode" in text
    latents, text = sentences(records, "encode.dtype=float16")
    for line in (latents, text):
        assert "nothing was encoded with these settings (dtype was float32 and is float16)" in line
    assert "nothing was encoded at the size 12x20 yet" in "\n".join(sentences(records, "encode.bucket_step=4"))


def test_parts_give_the_same_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    records, given = world.records(), inputs(world.text)
    world.encode(records, "whole")
    shared, apart = world.root / "shared", [world.root / f"part{number}" for number in (1, 2, 3)]
    for number, folder in enumerate(apart, start=1):
        for out in (shared, folder):
            fresh_store(world, monkeypatch, f"store-{number}-{out.name}")
            encode.run_part(given, records, world.autoencoder, out, Part(number, 3))
    fresh_store(world, monkeypatch, "nothing")
    encode.merge(given, records, world.autoencoder, shared, [])
    assert contents(shared) == contents(world.root / "whole")
    merged = world.root / "merged"
    encode.merge(given, records, world.autoencoder, merged, apart)
    assert {path.name for path in merged.iterdir()} == {"manifest.json", "index.parquet", "metrics.json"}
    assert EncodedManifest.read(merged) == EncodedManifest.read(world.root / "whole")


@pytest.mark.parametrize("bucket", [False, True], ids=["folder", "bucket"])
def test_parts_in_a_shared_place_make_one_set(world: World, monkeypatch: pytest.MonkeyPatch, bucket: bool) -> None:
    records, given = world.records(), inputs(world.text)
    whole = world.encode(records, "whole")
    with s3_bucket("sets") if bucket else nullcontext(str(world.root / "volume")) as storage:
        folders = [world.root / "one", world.root / "two"]
        for number, folder in enumerate(folders, start=1):
            encode.run_part(given, records, world.autoencoder, folder, Part(number, 2), storage=storage)
            assert [path.name for path in folder.iterdir()] == [f"part-{number:05d}-of-00002.json"]
        merged = encode.merge(given, records, world.autoencoder, world.root / "merged", folders, storage=storage)
        assert merged == whole

        place = encode.shared_place(storage, merged.fingerprint)
        expected = EncodedSet.open(world.root / "whole")
        # By its place alone, and as a merged set with its parts' place, as the pipeline hands it on.
        for opened in (EncodedSet.open(place), EncodedSet.open(world.root / "merged", [place])):
            for split in ("train", "test"):
                latents, wanted = (one.split(split).samples(0, torch.arange(1)).latents for one in (opened, expected))
                assert torch.equal(latents, wanted)
            assert (opened.text_folder / "text_encoder" / "config.json").is_file()

        # A pod that is tried again, with nothing kept of its own, finds the part there.
        fresh_store(world, monkeypatch, "another")
        world.asked["pictures"].clear()
        again = encode.run_part(given, records, world.autoencoder, world.root / "again", Part(1, 2), storage=storage)
        assert again.shards
        assert not world.asked["pictures"]


def test_a_part_that_is_not_ours_is_named(world: World) -> None:
    records, given = world.records(), inputs(world.text)
    made = encode.run_part(given, records, world.autoencoder, world.root / "one", Part(1, 1), storage=str(world.root))
    file = Path(encode.shared_place(str(world.root), made.fingerprint)) / "part-00001-of-00001.json"
    file.write_text("{}")
    with pytest.raises(
        LatentflowError, match=r"part-00001-of-00001\.json is not what `latentflow encode --part` writes"
    ):
        encode.run_part(given, records, world.autoencoder, world.root / "two", Part(1, 1), storage=str(world.root))


def test_a_merge_names_what_is_missing(world: World) -> None:
    records, given = world.records(), inputs(world.text)
    out = world.root / "encoded"
    with pytest.raises(LatentflowError, match="run `latentflow encode --part 1/n`"):
        encode.merge(given, records, world.autoencoder, out, [])
    encode.run_part(given, records, world.autoencoder, out, Part(1, 2))
    with pytest.raises(LatentflowError, match="part 2/2 is missing"):
        encode.merge(given, records, world.autoencoder, out, [])
    with pytest.raises(LatentflowError, match="no part of the set that these records"):
        encode.merge(inputs(world.text, "encode.dtype=float16"), records, world.autoencoder, out, [])


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_part_that_is_none(text: str) -> None:
    with pytest.raises(LatentflowError, match="expected number/of"):
        Part.parse(text)


def test_the_posterior_is_kept_where_asked_for(world: World) -> None:
    manifest = world.encode(world.records(), "encoded", "encode.posterior=distribution", "encode.flip=true")
    tensors = load_file(world.root / "encoded" / manifest.shards[0].file)
    assert {"logvar", "logvar_flipped"} <= set(tensors)
    assert tensors["logvar"].shape == tensors["latents"].shape


def test_clips(world: World, caplog: pytest.LogCaptureFixture) -> None:
    folder = world.root / "clips"
    for number in range(12):
        name = f"{number:02d}.mp4"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(clip(frames=8 if number else 3, size=(32, 32)))
        with (folder / "metadata.jsonl").open("a") as file:
            file.write(json.dumps({"file_name": name, "text": "a red cat"}) + "\n")
    records = make_records(folder, world.root / "clip-records")
    manifest = world.encode(records, "encoded", "encode.clip_frames=3", "encode.clip_stride=2", "encode.flip=true")
    assert "1 clips are left out" in caplog.text
    assert sum(manifest.counts.values()) == 11
    assert manifest.latent_shape == [4, 3, 8, 8]
    shard = next(shard for shard in manifest.shards if shard.split == "train")
    latents = load_file(world.root / "encoded" / shard.file)["latents"]
    assert latents.shape[1:] == (4, 3, 8, 8)
    # Frame 0, 2 and 4 of a clip that grows lighter.
    assert not torch.equal(latents[:, :, 0], latents[:, :, 1])


def test_an_encoder_that_gives_nan_is_an_error_and_leaves_nothing(world: World) -> None:
    broken = build_autoencoder(world.root / "broken", seed=1)
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["quant_conv.bias"][0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(LatentflowError, match=r"NaN or infinity in `latents` for '000.png'"):
        encode.run(inputs(world.text), world.records(), broken, world.root / "encoded")
    assert not (world.root / "encoded").exists()
    assert not list((world.root / "store").rglob("latents/*/*/*.safetensors"))


def test_a_damaged_pack_is_encoded_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    first = world.encode(world.records(), "encoded")
    pack = sorted((world.root / "store").rglob("16x16/*.safetensors"))[0]
    data = bytearray(pack.read_bytes())
    data[-100] ^= 1
    pack.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert world.encode(world.records(), "encoded") == first
    assert "is not what was written there" in caplog.text


def test_superseded_packs_go_and_their_rows_stay(world: World) -> None:
    world.encode(world.records(20), "encoded")
    world.encode(world.records(), "encoded")
    packs = list((world.root / "store").rglob("16x16/*.safetensors"))
    manifest = EncodedManifest.read(world.root / "encoded")
    assert len(packs) == sum(shard.kind == "latents" for shard in manifest.shards)
    world.encode(world.records(20), "smaller")
    assert world.rows() == {"pictures": 0, "captions": 0}


def test_a_step_that_does_not_fit_the_vae_is_refused(world: World) -> None:
    with pytest.raises(LatentflowError, match="bucket_step 1: expected a multiple of 2"):
        world.encode(world.records(), "encoded", "encode.bucket_step=1")


def test_a_store_that_cannot_be_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "file").write_text("in the way")
    monkeypatch.setenv("LATENTFLOW_STORE", str(world.root / "file" / "store"))
    with pytest.raises(LatentflowError, match=r"cannot be written: .*LATENTFLOW_STORE"):
        world.encode(world.records(), "encoded")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_no_half_shard(world: World, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = world.encode(world.records(), "encoded")
    monkeypatch.setenv("LATENTFLOW_STORE", str(small_disk / "store"))
    with pytest.raises(LatentflowError, match="cannot be written"):
        world.encode(world.records(), "again")
    kept = list(small_disk.rglob("*.safetensors"))
    # What is finished is whole, and completes the set elsewhere.
    assert all(load_file(path) for path in kept if not path.name.startswith("."))
    assert not (world.root / "again").exists()
    fresh_store(world, monkeypatch)
    assert world.encode(world.records(), "again") == complete


def command(world: World, records: Path, out: Path) -> list[str]:
    """A process that encodes."""
    code = (
        "import sys, json; sys.path[:0] = json.loads(sys.argv[1]);"
        "from pathlib import Path; from encoding import inputs;"
        "from latentflow.steps import encode;"
        "encode.run(inputs(Path(sys.argv[2])), *(Path(p) for p in sys.argv[3:6]))"
    )
    places = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    return ["-c", code, json.dumps(places), *map(str, (world.text, records, world.autoencoder, out))]


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process and those that it starts, as torchrun does: another number may change a last bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_two_at_once_make_one_set(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    records = world.records()
    expected = world.encode(records, "encoded")
    fresh_store(world, monkeypatch)
    outs = [world.root / "left", world.root / "right"]
    started = [subprocess.Popen([sys.executable, *command(world, records, out)]) for out in outs]
    assert [process.wait() for process in started] == [0, 0]
    assert [EncodedManifest.read(out) for out in outs] == [expected, expected]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_several_processes_share_the_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    records = world.records()
    expected = world.encode(records, "encoded")
    fresh_store(world, monkeypatch)
    arguments = command(world, records, world.root / "together")
    script = world.root / "script.py"
    script.write_text(arguments[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run([*launcher, *arguments[2:]], check=True)
    assert EncodedManifest.read(world.root / "together") == expected


def test_killed_before_the_text_encoder_was_saved(world: World) -> None:
    expected = world.encode(world.records(), "encoded")
    for folder in (world.root / "store").rglob("encoder"):
        shutil.rmtree(folder)
    assert world.encode(world.records(), "again") == expected
    assert world.rows() == {"pictures": 0, "captions": 0}
    assert contents(world.root / "again") == contents(world.root / "encoded")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_killed_at_any_moment_it_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import random
    import time

    records = world.records(60)
    expected = world.encode(records, "encoded")
    files = contents(world.root / "encoded")
    fresh_store(world, monkeypatch)
    chance = random.Random(0)
    out = world.root / "killed"
    for _ in range(12):
        process = subprocess.Popen([sys.executable, *command(world, records, out)])
        packs = len(list((world.root / "other").rglob("*.safetensors")))
        deadline = time.monotonic() + 60
        # Counted from the first sign of work, or it would only ever die while it imports.
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((world.root / "other").rglob("*.safetensors"))) > packs:
                break
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.wait()
    subprocess.run([sys.executable, *command(world, records, out)], check=True)
    assert EncodedManifest.read(out) == expected
    assert contents(out) == files
