"""What the page knows of the registry."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from latentflow.errors import RegistryError
from latentflow.registry import store
from latentflow.studio import catalogue
from latentflow.studio.catalogue import Version


def version(number: int, *aliases: str) -> Version:
    return Version("tiny", number, aliases, datetime(2026, 1, 1, tzinfo=UTC), {}, {})


def test_the_champion_stands_beside_the_newest_other_one() -> None:
    newest, middle, oldest = version(3, "challenger"), version(2, "champion"), version(1)
    assert catalogue.first_choice([newest, middle, oldest]) == (middle, newest)
    assert catalogue.first_choice([newest, oldest]) == (newest, oldest)
    assert catalogue.first_choice([oldest]) == (oldest, None)
    assert newest.label == "version 3 @challenger"


def test_figures_stand_with_their_intervals() -> None:
    metrics = {
        "top5": 0.9,
        "top5_low": 0.85,
        "top5_high": 0.95,
        "chance_top5": 0.01,
        "loss": 1.25,
        "loss_half_width": 0.04,
        "loss_by_sigma/0.5": 3.0,
        "kernel": 0.5,
    }
    assert catalogue.headlines(metrics) == {"top5": "0.9 (0.85 to 0.95)", "loss": "1.25 ± 0.04", "kernel": "0.5"}


def test_an_empty_registry_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    store.connect()
    with pytest.raises(RegistryError, match=r"no registered model in sqlite.*run `latentflow register` first"):
        catalogue.names()
