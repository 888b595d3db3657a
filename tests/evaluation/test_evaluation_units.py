"""units.csv there and back, what is wrong with a foreign one, and which way a metric is better."""

from pathlib import Path

import pytest

from latentflow.errors import LatentflowError
from latentflow.evaluation.directions import direction
from latentflow.evaluation.units import read_units, write_units


def test_values_come_back_to_the_last_digit(tmp_path: Path):
    units = {"heldout_loss": {'a "quoted", id': 1 / 3, "b": 1e-17}, "retrieval/test/top5": {"c": 1.0}}
    write_units(tmp_path, units)
    assert (tmp_path / "units.csv").read_text().startswith("metric,unit,value\n")
    assert read_units(tmp_path) == units


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, r"holds no units\.csv"),
        ("", "starts with"),
        ("a,b,c\n", "starts with"),
        ("metric,unit,value\nheldout_loss,a,lots\n", "has a row that is no metric"),
        ("metric,unit,value\nheldout_loss,a\n", "has a row that is no metric"),
    ],
)
def test_a_foreign_file_is_named(tmp_path: Path, text: str | None, complaint: str):
    if text is not None:
        (tmp_path / "units.csv").write_text(text)
    with pytest.raises(LatentflowError, match=complaint):
        read_units(tmp_path)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("retrieval/test/top5", 1),
        ("retrieval/test/top5_low", 0),
        ("retrieval/test/median_rank", -1),
        ("retrieval/test/chance_top5", 0),
        ("kernel_pixels8", -1),
        ("heldout_loss", -1),
        ("heldout_loss_half_width", 0),
        ("heldout_loss_by_sigma/0.05", -1),
        ("clip_score", 1),
        ("vae/psnr", 1),
        ("vae/lpips", -1),
        ("seconds_per_picture", -1),
        ("a_metric_of_somebody_else", 0),
    ],
)
def test_direction(name: str, wanted: int):
    assert direction(name) == wanted
