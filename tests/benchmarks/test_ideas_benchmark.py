"""The benchmark of training ideas runs, on pictures and at a size at which its figures mean nothing."""

import gzip
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

COMMAND = Path(__file__).parents[2] / "benchmarks" / "ideas.py"
PERCENT = r"[\d.]+ % \([\d.]+ to [\d.]+\)"
NUMBER = r"-?[\d.]+"


def write_pictures(folder: Path) -> None:
    """Files as Fashion-MNIST's, with 100 pictures in each of the two sets."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("train", "t10k"):
        pictures, labels = random.integers(0, 256, (100, 28, 28)), np.arange(100) % 10
        for what, header, values in (("images-idx3", 16, pictures), ("labels-idx1", 8, labels)):
            data = bytes(header) + values.astype(np.uint8).tobytes()
            (folder / f"{name}-{what}-ubyte.gz").write_bytes(gzip.compress(data))


@pytest.mark.slow
def test_it_prints_a_row_for_each_idea_and_goes_on_where_it_was(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    command = [sys.executable, str(COMMAND), "--small", "--pictures", "pictures", "--out", "out"]
    first, again = (subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0, first.stderr[-3000:]
    measured = rf"{PERCENT} \| {NUMBER}"
    for reference in ("real held-out", "the same, decoded"):
        assert re.search(rf"^\| {reference} \|  \|  \|  \| {measured} \|", first.stdout, re.M), first.stdout
    for run in ("no idea", r"contrastive=0\.05", r"tread=0\.5"):
        row = rf"^\| {run} \| 0 \| {NUMBER} \| {NUMBER} ± {NUMBER} \| {measured} \| {measured} \|$"
        assert re.search(row, first.stdout, re.M), first.stdout
    assert again.stdout == first.stdout, again.stderr[-3000:]
