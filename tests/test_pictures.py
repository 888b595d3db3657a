"""Tensors become the pictures they were."""

import numpy as np
import torch

from latentflow.pictures import grid, to_bytes, to_image, to_strip

COLOURS = ((255, 0, 0), (0, 0, 255))


def test_pixels_come_back_as_the_bytes_they_were() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    pixels = levels.float() / 127.5 - 1
    assert torch.equal(to_bytes(pixels), levels)
    for given in (levels, pixels):
        assert np.array_equal(np.asarray(to_image(given)), levels.permute(1, 2, 0).numpy())


def test_what_lies_beyond_the_range_is_cut_not_wrapped() -> None:
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_a_grid_holds_every_picture_enlarged() -> None:
    red, blue = (to_image(torch.tensor(rgb, dtype=torch.uint8)[:, None, None].expand(3, 2, 2)) for rgb in COLOURS)
    sheet = grid([red, blue, red], columns=2, scale=3, gap=1)
    assert sheet.size == (15, 15)
    assert [sheet.getpixel(place) for place in ((1, 1), (8, 1), (1, 8), (8, 8))] == [*COLOURS, COLOURS[0], (255,) * 3]


def test_a_clip_is_a_strip_of_its_first_its_last_and_some_between() -> None:
    clip = torch.arange(11).reshape(1, 11, 1, 1).expand(3, 11, 2, 2).to(torch.uint8)
    strip = np.asarray(to_strip(clip, frames=6))
    assert strip[0, ::2, 0].tolist() == [0, 2, 4, 6, 8, 10]
    assert strip.shape == (2, 12, 3)
    assert np.asarray(to_strip(clip[:, :1])).shape == (2, 2, 3)
