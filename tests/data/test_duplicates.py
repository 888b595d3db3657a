"""Duplicates: the same picture saved again is found, other pictures and empty ones are not."""

import hashlib

import numpy as np
import pytest
from ingest_helpers import encoded, scene
from PIL import Image, ImageDraw

from latentflow.data.duplicates import COLOURS, DuplicateFinder, Look, look
from latentflow.data.media import probe


def look_of(image: Image.Image, kind: str = "PNG", **options: object) -> Look | None:
    return look(probe(encoded(image, kind, **options)).small)


def distance(first: Look | None, second: Look | None) -> int:
    assert first is not None
    assert second is not None
    return (first.hash ^ second.hash).bit_count()


def found(first: Look | None, second: Look | None, bits: int = 6) -> bool:
    finder = DuplicateFinder(bits)
    finder.add("first", b"1" * 32, first)
    return finder.find("second", b"2" * 32, second) is not None


@pytest.mark.parametrize("seed", range(12))
def test_a_picture_that_was_saved_again_is_near(seed: int) -> None:
    image = scene(seed)
    original = look_of(image)
    for again in (
        look_of(image, "JPEG", quality=60),
        look_of(image.resize((128, 96), Image.Resampling.LANCZOS)),
        look_of(image.resize((400, 300), Image.Resampling.BICUBIC), "WEBP", quality=70),
        look_of(image.convert("RGBA")),
    ):
        assert distance(original, again) <= 6
        assert found(original, again)


def test_other_pictures_are_not_near() -> None:
    looks = [look_of(scene(seed)) for seed in range(60)]
    finder = DuplicateFinder(8)
    for number, one in enumerate(looks):
        assert finder.find(str(number), bytes([number]) * 32, one) is None
        finder.add(str(number), bytes([number]) * 32, one)


def heart(fill: str, mouth: bool = False) -> Image.Image:
    image = Image.new("RGB", (72, 72), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((6, 6, 66, 66), fill=fill)
    if mouth:
        pen.ellipse((26, 40, 46, 58), fill="black")
    return image


def test_one_shape_in_two_colours_is_two_pictures() -> None:
    red, green = look_of(heart("#dd2e44")), look_of(heart("#78b159"))
    assert distance(red, green) <= 4
    assert not found(red, green)


def test_a_small_detail_makes_another_picture() -> None:
    assert not found(look_of(heart("#ffcc4d")), look_of(heart("#ffcc4d", mouth=True)))


@pytest.mark.parametrize(
    "image", [Image.new("RGB", (64, 64), "white"), Image.new("L", (64, 64), 3), Image.new("RGB", (1, 1))]
)
def test_a_constant_picture_has_no_look(image: Image.Image) -> None:
    assert look_of(image) is None
    noise = np.random.default_rng(0).integers(250, 253, (64, 64, 3), dtype=np.uint8)
    assert look_of(Image.fromarray(noise)) is None


def test_the_hash_stays_what_it_was() -> None:
    ramp = np.add.outer(np.arange(32) * 5, np.arange(32) * 2)[..., None].repeat(3, axis=2).astype(np.uint8)
    found_look = look(ramp)
    assert found_look is not None
    assert hashlib.sha256(found_look.hash.to_bytes(8) + found_look.colours).hexdigest()[:16] == EXPECTED


EXPECTED = "ccfa99aea5ddd8a3"


def test_equal_bytes_are_exact_and_the_first_one_counts() -> None:
    finder = DuplicateFinder(4)
    seen = look_of(scene(0))
    for name in ("a", "b"):
        finder.add(name, b"x" * 32, seen)
    duplicate = finder.find("c", b"x" * 32, seen)
    assert duplicate is not None
    assert (duplicate.id, duplicate.of, duplicate.kind, duplicate.distance) == ("c", "a", "exact", 0)


@pytest.mark.parametrize("bits", [0, 1, 3, 4, 8])
def test_bands_find_what_comparing_all_with_all_finds(bits: int) -> None:
    generator = np.random.default_rng(bits)
    hashes = [int(value) for value in generator.integers(0, 2**63, 150)]
    for base in list(hashes):
        flips = generator.choice(64, int(generator.integers(0, 10)), replace=False)
        hashes.append(base ^ sum(1 << int(flip) for flip in flips))
    finder = DuplicateFinder(bits)
    for number, value in enumerate(hashes):
        earlier = [((value ^ other).bit_count(), place) for place, other in enumerate(hashes[:number])]
        expected = min((pair for pair in earlier if pair[0] <= bits), default=None)
        one = Look(value, bytes(COLOURS))
        duplicate = finder.find(str(number), number.to_bytes(16) * 2, one)
        assert (duplicate and (duplicate.distance, int(duplicate.of))) == expected
        finder.add(str(number), number.to_bytes(16) * 2, one)
