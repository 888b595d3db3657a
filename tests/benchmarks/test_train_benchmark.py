"""The benchmark of training loops runs, with the loops that are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "benchmarks" / "train.py"
NUMBER = r"[\d.,]+"


@pytest.mark.slow
def test_it_prints_its_tables_with_whoever_is_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(COMMAND), "--small"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tables = done.stdout.split("\nBatch ")[1:]
    assert [table.split()[0] for table in tables] == ["1", "4"]
    for table in tables:
        for loop in ("latentflow", "a bare loop", "diffusers script"):
            assert re.search(rf"^\| {loop} \| {NUMBER} \| {NUMBER} \| {NUMBER} \| {NUMBER} % \|", table, re.M), table
        for peer in ("smalldiffusion", "DiffSynth-Studio"):
            assert re.search(rf"^(\| {peer} \| {NUMBER} \||{peer} is left out: )", table, re.M), table
    costs = done.stdout.split("| what | latentflow |")[1]
    assert len(re.findall(r"waits for data at batch \d \| [\d.]+ %", costs)) == 2
    assert len(re.findall(r"MiB and [\d,]+ MiB, \d+\.\d+ times", costs)) == 2
    assert re.search(r"blocks training for \| -?[\d.]+ s", costs)
    assert re.search(r"resumed and anew \| [\d.]+ s and [\d.]+ s", costs)
    # Killed half-way between two checkpoints of four steps: these are so quick that the first may not be whole by then.
    assert re.search(r"killed after 6 with checkpoints every 4 \| [26] \|", costs), costs
    assert not list(tmp_path.iterdir())
