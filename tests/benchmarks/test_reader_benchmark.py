"""The reader's benchmark runs, with the readers that are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "benchmarks" / "reader.py"


@pytest.mark.slow
def test_it_prints_its_tables_with_whoever_is_there(tmp_path: Path) -> None:
    command = [sys.executable, str(COMMAND), "--small", "--folder", str(tmp_path)]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^\| latentflow \| [\d,]+ \| 0 \| 1\.0 \|", page, re.MULTILINE)
    size = re.search(r"^\| latentflow \| (1\.0\d+) \|$", page, re.MULTILINE)
    assert size
    assert float(size[1]) < 1.02
    for peer in ("litdata", "mosaicml-streaming", "webdataset", "datasets"):
        assert re.search(rf"^(\| {peer} \||{peer} is left out: )", page, re.MULTILINE), peer
