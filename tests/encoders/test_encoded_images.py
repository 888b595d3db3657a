"""Control pictures and reference images beside the latents: what is stored, in register, and what is encoded again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from encoding import PARAMS, build_autoencoder, build_text_encoder, inputs, make_records, write_pictures
from PIL import Image
from safetensors.torch import save_file
from tiny import RESOLUTION
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from latentflow.data.encoded import EncodedSet
from latentflow.data.media import fit
from latentflow.data.records import RecordSet
from latentflow.encoders import images
from latentflow.encoders import vae as vae_room
from latentflow.encoders.edges import edges
from latentflow.encoders.images import ImageEncoder
from latentflow.errors import LatentflowError
from latentflow.manifest import EncodedManifest
from latentflow.params import EncodeInputs, IngestInputs, load
from latentflow.steps import encode, ingest

COUNT, WIDTH = 20, 12
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SMALL | {"image_size": RESOLUTION, "patch_size": 8}


def test_edges_are_where_colours_change() -> None:
    picture = torch.full((1, 3, 20, 20), 200, dtype=torch.uint8)
    picture[:, 0, 5:15, 5:15] = 40  # A square of another colour.
    found = edges(picture)
    assert found.shape == picture.shape
    assert set(found.unique().tolist()) == {0, 255}
    assert torch.equal(found[:, 0], found[:, 2])
    lit = found[0, 0] > 0
    assert lit[3:7, 8:12].any(0).all(), "its upper side"
    assert lit[8:12, 13:17].any(1).all(), "its right side"
    assert not lit[8:12, 8:12].any(), "nothing inside"
    assert not lit[:3].any(), "nothing outside"
    assert not edges(torch.full_like(picture, 77)).any(), "a plain picture has none"


def test_a_faint_edge_goes_on_but_does_not_begin() -> None:
    faint = torch.full((1, 3, 20, 20), 100, dtype=torch.uint8)
    faint[..., 10:] = 140
    strong = faint.clone()
    strong[..., :13, 10:] = torch.linspace(200, 140, 13)[:, None].byte()
    assert not edges(faint).any()
    assert edges(strong)[0, 0, 15, 8:12].any(), "far from where it is strong"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=WIDTH)).save_pretrained(root / "clip")
    return build_autoencoder(root / "autoencoder"), build_text_encoder(root / "text"), root / "clip"


class World:
    """Records with a column of control pictures, which are the pictures in other colours, twice as large."""

    def __init__(self, root: Path, models: tuple[Path, Path, Path]) -> None:
        self.root = root
        self.autoencoder, self.text, self.clip = models
        self.folder = write_pictures(root / "pictures", COUNT)
        lines = (self.folder / "metadata.jsonl").read_text().splitlines()
        rows = [json.loads(line) | {"pose": f"pose-{number:03d}.png"} for number, line in enumerate(lines)]
        (self.folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for number in range(COUNT):
            self.write(number, np.asarray(Image.open(self.folder / f"{number:03d}.png"))[..., ::-1])

    def write(self, number: int, pixels: np.ndarray) -> None:
        Image.fromarray(pixels.repeat(2, 0).repeat(2, 1)).save(self.folder / f"pose-{number:03d}.png")

    def records(self, name: str = "records", column: str = "pose") -> Path:
        settings = (f"ingest.source={self.folder}", f"ingest.condition_columns=[{column}]")
        shares = ("ingest.validation_fraction=0.25", "ingest.test_fraction=0.25")
        params = load(PARAMS, [*settings, *shares]).ingest
        ingest.run(IngestInputs(ingest=params), self.root / name)
        return self.root / name

    def encode(self, records: Path, name: str, *more: str) -> EncodedManifest:
        return encode.run(self.inputs(*more), records, self.autoencoder, self.root / name)

    def inputs(self, *more: str) -> EncodeInputs:
        columns = (f"ingest.source={self.folder}", "ingest.condition_columns=[pose]")
        return inputs(self.text, *columns, *more)


@pytest.fixture
def world(models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    return World(tmp_path, models)


def every(world: World) -> tuple[str, ...]:
    return (
        "encode.control_image='column:pose'",
        "encode.reference_image=picture",
        f"encode.image_encoder={world.clip}",
    )


def test_control_pictures_are_cut_as_the_pictures_are_and_mirrored_with_them(world: World) -> None:
    records = RecordSet.open(world.records())
    manifest = world.encode(records.folder, "encoded", *every(world), "encode.bucket_step=4", "encode.flip=true")
    assert (manifest.images.control, manifest.images.width) == ("column:pose", WIDTH)
    by_id = {record.id: record for record in records.table}
    split, seen = EncodedSet.open(world.root / "encoded").split("train"), 0
    encoder = images.load(str(world.clip))
    for bucket, one in enumerate(split.buckets):
        rows = torch.arange(one.count)
        samples = split.samples(bucket, rows, flip=torch.arange(one.count) % 2 == 1)
        assert samples.control is not None
        assert samples.image is not None
        for row, name in enumerate(split.ids(bucket, rows)):
            data = records.read(by_id[name].conditions[0])
            (world.root / "one.png").write_bytes(data)
            wanted = torch.from_numpy(
                fit(Image.open(world.root / "one.png"), 2 * one.shape[1], 2 * one.shape[2])[0].copy()
            )
            wanted = wanted.flip(1) if row % 2 else wanted
            assert torch.equal(samples.control[row].permute(1, 2, 0), wanted)
            picture = Image.open(world.folder / name)
            embedded = encoder.embed(encoder.prepare(picture)[None])[0]
            torch.testing.assert_close(samples.image[row], embedded, atol=1e-5, rtol=1e-5)
            seen += 1
    assert seen == manifest.counts["train"]
    assert sum(manifest.counts.values()) == COUNT


def test_what_stands_for_no_image_comes_with_the_set(world: World) -> None:
    world.encode(world.records(), "encoded", *every(world))
    encoded = EncodedSet.open(world.root / "encoded")
    assert encoded.empty.control is not None
    assert encoded.empty.control.shape == (1, 3, RESOLUTION, RESOLUTION)
    assert encoded.empty.image is not None
    assert encoded.empty.image.shape == (1, WIDTH)
    assert not encoded.empty.image.any()
    assert images.width(str(encoded.image_folder / "image_encoder")) == WIDTH


def test_another_control_picture_encodes_its_row_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counted(monkeypatch)
    first = world.encode(world.records(), "first", *every(world))
    # Calls of four are filled up, and shards end at five rows.
    assert asked["latents"] >= COUNT
    asked.update(latents=0, embeddings=0)
    world.write(3, np.zeros((18, 25, 3), np.uint8))
    second = world.encode(world.records("changed"), "second", *every(world))
    assert asked == {"latents": 0, "embeddings": 4}
    assert first.digest != second.digest
    of_kind = [{s.sha256 for s in one.shards if s.kind == "latents"} for one in (first, second)]
    assert of_kind[0] == of_kind[1]


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    asked = {"latents": 0, "embeddings": 0}
    posterior, embed = vae_room.posterior, ImageEncoder.embed

    def counted_posterior(vae: object, pixels: torch.Tensor) -> object:
        asked["latents"] += len(pixels)
        return posterior(vae, pixels)

    def counted_embed(self: ImageEncoder, prepared: torch.Tensor) -> torch.Tensor:
        asked["embeddings"] += len(prepared)
        return embed(self, prepared)

    monkeypatch.setattr(vae_room, "posterior", counted_posterior)
    monkeypatch.setattr(ImageEncoder, "embed", counted_embed)
    return asked


def test_parts_make_the_same_set(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    records = world.records()
    whole = world.encode(records, "whole", *every(world))
    monkeypatch.setenv("LATENTFLOW_STORE", str(world.root / "another"))
    chosen = world.inputs(*every(world))
    folders = [world.root / f"part-{number}" for number in (1, 2)]
    for number, folder in enumerate(folders, start=1):
        encode.run_part(chosen, records, world.autoencoder, folder, encode.Part(number, 2))
    merged = encode.merge(chosen, records, world.autoencoder, world.root / "merged", folders)
    assert merged.digest == whole.digest
    assert merged.images == whole.images
    opened = EncodedSet.open(world.root / "merged", folders)
    assert opened.image_folder == folders[0]
    assert opened.split("train").samples(0, torch.arange(1)).control is not None


def test_a_set_without_images_says_nothing_of_them(world: World) -> None:
    manifest = world.encode(world.records(), "encoded")
    assert {shard.kind for shard in manifest.shards} == {"latents", "text"}
    condition = EncodedSet.open(world.root / "encoded").split("train").samples(0, torch.arange(2)).condition
    assert condition.control is None
    assert condition.image is None


def test_explain_tells_of_images(world: World) -> None:
    records = world.records()
    chosen = world.inputs(*every(world))
    assert f"images 16x16: {COUNT} of {COUNT} rows" in "\n".join(encode.explain(chosen, records, world.autoencoder))
    world.encode(records, "encoded", *every(world))
    assert f"images 16x16: all {COUNT} rows are in the work store; nothing to encode." in encode.explain(
        chosen, records, world.autoencoder
    )


def test_a_control_picture_of_another_shape_is_refused(world: World) -> None:
    world.write(3, np.zeros((30, 10, 3), np.uint8))
    with pytest.raises(LatentflowError, match=r"that of 003\.png is 20x60 and the picture itself 25x18"):
        world.encode(world.records(), "encoded", *every(world))


def test_a_column_of_text_is_refused(world: World) -> None:
    lines = (world.folder / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"pose": "standing"} for line in lines]
    (world.folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(LatentflowError, match=r"column:pose should hold a picture .* the text 'standing' there"):
        world.encode(world.records(), "encoded", *every(world))
    with pytest.raises(LatentflowError, match="has no such column"):
        world.encode(make_records(world.folder, world.root / "without"), "encoded", *every(world))


def write_siglip(folder: Path) -> None:
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": RESOLUTION, "width": RESOLUTION}).save_pretrained(folder)


def write_whole_clip(folder: Path) -> None:
    text = SMALL | {"vocab_size": 32, "max_position_embeddings": 16}
    config = CLIPConfig(text_config=text, vision_config=VISION | {"projection_dim": WIDTH}, projection_dim=WIDTH)
    CLIPModel(config).save_pretrained(folder)


@pytest.mark.parametrize(("write", "width"), [(write_siglip, 16), (write_whole_clip, WIDTH)])
def test_image_encoders(write: Callable[[Path], None], width: int, tmp_path: Path) -> None:
    write(tmp_path)
    encoder = images.load(str(tmp_path))
    assert images.width(str(tmp_path)) == width
    pictures = [Image.new("RGB", size, colour) for size, colour in (((30, 20), "red"), ((8, 8), "blue"))]
    found = encoder.embed(torch.stack([encoder.prepare(picture) for picture in pictures]))
    assert found.shape == (2, width)
    assert not torch.allclose(found[0], found[1])
    encoder.save(tmp_path / "saved")
    again = images.load(str(tmp_path / "saved" / "image_encoder"))
    torch.testing.assert_close(again.embed(again.prepare(pictures[0])[None])[0], found[0], atol=1e-5, rtol=1e-5)


def test_what_is_no_image_encoder_is_refused(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(LatentflowError, match=r"encode\.image_encoder: .* is a bert, and only CLIP and SigLIP"):
        images.width(str(tmp_path / "bert"))
    config = CLIPVisionConfig(**VISION, projection_dim=WIDTH)
    config.save_pretrained(tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(LatentflowError, match="is a pickle"):
        images.load(str(tmp_path / "pickled"))
    config.save_pretrained(tmp_path / "part")
    save_file({"visual_projection.weight": torch.zeros(WIDTH, 16)}, tmp_path / "part" / "model.safetensors")
    with pytest.raises(LatentflowError, match="missing keys"):
        images.load(str(tmp_path / "part"))
