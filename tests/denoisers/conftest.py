"""The tiny checkpoint of each family, written once."""

from pathlib import Path

import pytest
from checkpoints import CHECKPOINTS, Tiny


@pytest.fixture(scope="session", params=sorted(CHECKPOINTS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny(name: str) -> Tiny:
    return CHECKPOINTS[name]


@pytest.fixture(scope="session")
def folder(name: str, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("checkpoints") / name)
