"""A tiny model as `train` leaves it, and one as `register` packages it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/tiny.py


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder that says how it is drawn."""
    from tiny import build_pipeline

    folder = build_pipeline(tmp_path_factory.mktemp("trained") / "pipeline")
    defaults = json.loads((folder / "generation.json").read_text())
    (folder / "generation.json").write_text(json.dumps({**defaults, "sampler": "euler", "steps": 3, "guidance": 2.0}))
    return folder
