"""Pixels of every kind of picture: what the file says, upright, over white, in 8 bits."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from ingest_helpers import encoded, scene
from PIL import Image, ImageOps

from latentflow.data.media import decode_picture, fit, probe
from latentflow.data.refusal import Fault, RefusedError


def colour(data: bytes, place: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    return decode_picture(data).getpixel(place)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste((255, 0, 0), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    # The inverse of each transposition that the tag asks for.
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    data = encoded(upright if stored is None else upright.transpose(stored), "PNG", exif=exif)
    assert decode_picture(data).tobytes() == upright.tobytes()
    found = probe(data)
    assert (found.width, found.height) == (40, 20)


@pytest.mark.parametrize(
    "kind", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "JPEG2000", "TGA", "PPM", "ICO", "AVIF", "DDS", "SGI"]
)
def test_formats_that_pillow_reads(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    options = {"lossless": True} if kind == "WEBP" else {}
    found = probe(encoded(Image.new("RGB", (32, 32), (255, 0, 0)), kind, **options))
    assert (found.kind, found.width, found.height, found.frames) == ("picture", 32, 32, 1)
    assert np.abs(found.small.astype(int) - [255, 0, 0]).max() <= 3


def test_alpha_lies_on_white() -> None:
    assert colour(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))) == (255, 255, 255)
    assert colour(encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 128)))) == (255, 127, 127)
    assert colour(encoded(Image.new("LA", (8, 8), (0, 0)))) == (255, 255, 255)


def test_palette_with_transparency() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 0, 200, 0])
    image.putpixel((0, 0), 0)
    data = encoded(image, transparency=0)
    assert colour(data) == (255, 255, 255)
    assert colour(data, (1, 1)) == (0, 200, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    decoded = decode_picture(encoded(Image.fromarray(levels), kind))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floats_lie_between_0_and_1() -> None:
    levels = np.array([[0, 0.5, 1, 7, np.nan]], np.float32)
    assert np.asarray(decode_picture(encoded(Image.fromarray(levels), "TIFF")))[0, :, 0].tolist() == [
        0,
        128,
        255,
        255,
        0,
    ]


def test_cmyk_grey_and_one_bit() -> None:
    red = colour(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.subtract(red, (255, 0, 0))).max() <= 4
    assert colour(encoded(Image.new("L", (8, 8), 77))) == (77, 77, 77)
    assert colour(encoded(Image.new("1", (8, 8), 1))) == (255, 255, 255)


def test_an_animated_picture_is_read_by_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), name) for name in ("red", "blue")]
    found = probe(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (found.kind, found.frames, found.animated) == ("picture", 1, True)
    assert found.small[0, 0].tolist() == [255, 0, 0]
    assert not probe(encoded(frames[0], "GIF")).animated


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels by its header, in a few bytes."""
    data = bytearray(encoded(Image.new("L", (8, 8))))
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "fault", "reason"),
    [
        (b"", Fault.EMPTY, "no bytes"),
        (b"\0" * 500, Fault.UNKNOWN, "no format that Pillow reads"),
        (b"<html>not found</html>", Fault.UNKNOWN, "no format that Pillow reads"),
        (encoded(scene(1), "JPEG")[:2000], Fault.BROKEN, "cannot be decoded"),
        (encoded(scene(1))[:2000], Fault.BROKEN, "cannot be decoded"),
        (encoded(scene(1), "WEBP")[:900], Fault.BROKEN, "cannot be decoded"),
        (bomb(), Fault.BOMB, "too many pixels"),
    ],
)
def test_what_cannot_be_decoded_is_refused(data: bytes, fault: Fault, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason) as caught:
        probe(data)
    assert caught.value.fault == fault


def test_corrupt_bytes_are_refused_or_decoded_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    decoded = 0
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        good = encoded(scene(2, (32, 24)), kind)
        for _ in range(60):
            data = bytearray(good)
            for place in generator.integers(0, min(len(data), 400), 4):
                data[place] = generator.integers(0, 256)
            with suppress(RefusedError):
                decoded += probe(bytes(data), 20_000).frames
    assert 0 < decoded < 360


def test_size_is_refused_by_the_header_alone() -> None:
    with pytest.raises(RefusedError, match=r"8000x2 pixels, above ingest\.max_side 7999"):
        probe(encoded(Image.new("L", (8000, 2)))[:200], 7999)


def test_a_picture_with_a_side_of_20000_pixels_is_fine() -> None:
    assert probe(encoded(Image.new("1", (20_000, 40))), 20_000).width == 20_000


@pytest.mark.parametrize("size", [(72, 72), (100, 37), (31, 250), (1, 1)])
@pytest.mark.parametrize("side", [8, 32, 50])
def test_a_square_is_cut_as_pillow_does(size: tuple[int, int], side: int) -> None:
    image = scene(3, size)
    pixels, _ = fit(image, side, side)
    assert pixels.tobytes() == ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS).tobytes()


def test_the_cut_lies_in_the_scaled_picture() -> None:
    pixels, place = fit(scene(4, (200, 100)), 40, 50)
    assert pixels.shape == (40, 50, 3)
    # 200x100 is scaled to 80x40, of which 15 columns at either side go.
    assert place == (0, 15)
    assert fit(scene(4, (100, 200)), 40, 50)[1] == (30, 0)


def test_the_first_page_of_several_is_read() -> None:
    pages = [Image.new("L", (8, 8), level) for level in (10, 20)]
    data = io.BytesIO()
    pages[0].save(data, "TIFF", save_all=True, append_images=pages[1:])
    assert colour(data.getvalue()) == (10, 10, 10)
