"""The benchmarks of ingest and encode run, at a size at which their figures mean nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "rows"),
    [
        ("ingest.py", ("--pictures", "12", "--rounds", "1"), 2),
        ("ingest.py", ("--memory", "--records", "200", "--workers", "1"), 1),
        (
            "encode.py",
            ("--pictures", "64", "--batch", "8", "--resolution", "16", "--channels", "16", "16", "--rounds", "1"),
            1,
        ),
    ],
)
def test_a_benchmark_prints_its_table(script: str, options: tuple[str, ...], rows: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == rows + 2, done.stdout
