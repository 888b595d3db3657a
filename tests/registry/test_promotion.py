"""Promotions one by one, and many at once in real processes, against a sqlite file and a real server."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from latentflow.errors import LatentflowError, RegistryError
from latentflow.registry import ledger, marks, promotion, store
from latentflow.registry.pulling import ModelUri, parse

NAME = "tiny"
PROMOTER = Path(__file__).with_name("promoter.py")


def make_versions(count: int, status: str = "passed", against: str = "1") -> None:
    """Versions without a model inside: aliases do not ask what they are on. Version 1 is the champion."""
    client = store.connect()
    ledger.create_model(client, NAME)
    run = client.create_run(store.experiment_id(client)).info.run_id
    for _ in range(count):
        tags = {marks.STATUS: status, marks.CHAMPION: against}
        client.create_model_version(NAME, source=f"runs:/{run}/model", run_id=run, tags=tags)
    client.set_registered_model_alias(NAME, "champion", "1")


def aliases() -> dict[str, str]:
    found = store.connect(create=False).get_registered_model(NAME).aliases
    return {alias: str(version) for alias, version in found.items()}


def tags(version: str) -> dict[str, str]:
    return dict(store.connect(create=False).get_model_version(NAME, version).tags)


def promote(version: str, reason: str = "") -> promotion.Change:
    return promotion.promote(store.connect(create=False), parse(f"models:/{NAME}/{version}"), reason)


def plans() -> list[dict[str, dict[str, str]]]:
    client = store.connect(create=False)
    run = client.get_run(client.get_registered_model(NAME).tags[marks.LEDGER])
    return [json.loads(text) for key, text in sorted(run.data.params.items()) if key.endswith(".plan")]


def test_promote_and_roll_back_with_reasons(project: Path) -> None:
    make_versions(3)
    store.connect().set_registered_model_alias(NAME, "challenger", "2")
    change = promote("2")
    assert aliases() == {"champion": "2", "previous": "1"}
    assert str(change) == (
        "tiny: @previous: none -> version 1, @champion: version 1 -> version 2, @challenger: version 2 -> none"
    )
    assert tags("2")["latentflow.promoted_because"] == "passed the gate against version 1"
    assert "@" in tags("2")["latentflow.promoted_by"]
    assert tags("2")["latentflow.promoted_at"].endswith("+00:00")
    assert tags("1")["latentflow.retired_because"] == "version 2 was promoted: passed the gate against version 1"
    client = store.connect()
    assert "@champion: version 2 -> version 1" in str(promotion.rollback(client, NAME, "green hearts are red"))
    assert aliases() == {"champion": "1", "previous": "2"}
    assert tags("2")["latentflow.retired_because"] == "rollback: green hearts are red"
    promotion.rollback(client, NAME, "they were green")
    assert aliases() == {"champion": "2", "previous": "1"}
    assert str(promote("2")) == "tiny: nothing to change"


def test_without_a_reason_only_what_passed_against_this_champion_is_promoted(project: Path) -> None:
    make_versions(3)
    promote("2")
    with pytest.raises(RegistryError, match=r"passed against version 1, and @champion is version 2 now"):
        promote("3")
    assert aliases() == {"champion": "2", "previous": "1"}
    promote("3", "  looked at 200 pictures,\n they are better ")
    assert aliases() == {"champion": "3", "previous": "2"}
    assert tags("3")["latentflow.promoted_because"] == "looked at 200 pictures, they are better"


def test_a_refused_version_needs_a_reason(project: Path) -> None:
    make_versions(2, status="failed")
    with pytest.raises(RegistryError, match=r"validation_status 'failed', not 'passed'.*--reason"):
        promote("2")
    assert aliases() == {"champion": "1"}
    promote("2", "the gate measures the wrong thing")
    assert aliases() == {"champion": "2", "previous": "1"}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: promote("7", "so"), "no version 7; its aliases: @champion"),
        (lambda: promotion.promote(store.connect(), ModelUri("tini", "", "1"), "so"), "no model 'tini'.*tiny"),
        (lambda: promotion.promote(store.connect(), ModelUri(NAME, "best", ""), "so"), "no alias 'best'"),
        (lambda: promotion.rollback(store.connect(), NAME, "so"), "no version @previous"),
        (lambda: promotion.rollback(store.connect(), NAME, " "), "needs a reason"),
        (lambda: promotion.rollback(store.connect(), "tini", "so"), "no model 'tini'"),
        (lambda: promote("2", "x" * 1001), "1001 characters"),
    ],
)
def test_what_cannot_be_done_changes_nothing(project: Path, act: Callable[[], object], message: str) -> None:
    make_versions(2)
    with pytest.raises(LatentflowError, match=message):
        act()
    assert aliases() == {"champion": "1"}
    assert plans() == []


def test_a_model_of_another_maker_gets_a_ledger(project: Path) -> None:
    make_versions(2)
    store.connect().delete_registered_model_tag(NAME, marks.LEDGER)
    promote("2")
    first = store.connect().get_registered_model(NAME).tags[marks.LEDGER]
    store.connect().delete_run(first)
    promotion.rollback(store.connect(), NAME, "back")
    assert aliases() == {"champion": "1", "previous": "2"}
    assert store.connect().get_registered_model(NAME).tags[marks.LEDGER] != first


def test_what_a_person_moved_in_the_ui_stays(project: Path) -> None:
    make_versions(3)
    promote("2")
    store.connect().set_registered_model_alias(NAME, "champion", "3")
    promotion.rollback(store.connect(), NAME, "back")
    assert aliases() == {"champion": "1", "previous": "3"}


def start(version: str, reason: str, trouble: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, str(PROMOTER), version, reason, *([trouble] if trouble else [])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy())


def go(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Lets all begin at once, when the last one is ready; what each printed."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate(timeout=300)[0] for process in processes]


def assert_one_after_the_other(changes: int) -> None:
    """Every plan begins where the one before ended, and the aliases are where the last one put them."""
    made = plans()
    assert len(made) == changes
    assert all(later["before"] == earlier["after"] for earlier, later in itertools.pairwise(made))
    assert aliases() == {alias: version for alias, version in made[-1]["after"].items() if version}
    assert aliases()["champion"] != aliases()["previous"]


def at_once(reasons: bool) -> None:
    """Four processes promote four versions; without reasons only the first one's verdict still holds."""
    told = go([start(str(version), "because" if reasons else "") for version in range(2, 6)])
    changed = [text for text in told if text.startswith("changed")]
    assert len(changed) == (4 if reasons else 1)
    assert all("passed against version 1, and @champion is version" in text for text in told if text not in changed)
    assert_one_after_the_other(len(changed))


def test_two_at_once_on_one_machine(project: Path) -> None:
    make_versions(3)
    told = go([start("2", ""), start("3", "")])
    assert sorted(text.split()[0] for text in told) == ["RegistryError", "changed"]
    assert_one_after_the_other(1)


def died(version: str) -> None:
    """A process is killed when it has moved one alias of two."""
    process = start(version, "because", "die")
    go([process])
    assert process.returncode == 9


def test_the_next_one_finishes_what_a_killed_one_began(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_versions(3)
    died("2")
    assert aliases() == {"champion": "1", "previous": "1"}
    monkeypatch.setattr(ledger, "LEASE_SECONDS", 0.5)
    promote("3", "because")
    assert aliases() == {"champion": "3", "previous": "2"}
    assert_one_after_the_other(2)


def test_a_version_that_was_deleted_does_not_block_the_next_turn(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_versions(3)
    died("2")
    store.connect().delete_model_version(NAME, "2")
    monkeypatch.setattr(ledger, "LEASE_SECONDS", 0.5)
    promote("3", "because")
    assert aliases()["champion"] == "3"


def test_a_slow_one_whose_turn_was_taken_says_so_and_leaves_no_mix(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the local file's lock, as over a network: the slow process writes its alias after it lost its turn."""
    make_versions(3)
    monkeypatch.setattr(ledger, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(store, "store_lock", nullcontext)
    client = store.connect()
    real = type(client).set_registered_model_alias

    def overtaken(self: object, name: str, alias: str, version: str) -> None:
        if alias == "champion":
            monkeypatch.setattr(type(client), "set_registered_model_alias", real)
            promote("3", "faster")
            assert aliases() == {"champion": "3", "previous": "2"}
        real(self, name, alias, version)

    monkeypatch.setattr(type(client), "set_registered_model_alias", overtaken)
    with pytest.raises(ledger.LostTurnError, match="another one took its turn"):
        promote("2", "slower")
    assert aliases() == {"champion": "3", "previous": "2"}


@pytest.mark.slow
def test_many_at_once_through_a_server(server: str) -> None:
    make_versions(5)
    at_once(reasons=True)


@pytest.mark.slow
def test_many_at_once_through_a_server_of_which_one_has_passed(server: str) -> None:
    make_versions(5)
    at_once(reasons=False)


@pytest.mark.slow
def test_a_killed_one_and_a_stalled_one_among_others_through_a_server(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns are so short that on a busy machine any of them may be lost; whoever loses one says so."""
    monkeypatch.setenv("LEASE_SECONDS", "2")
    make_versions(6)
    died("2")
    told = go([start("3", "because", "stall"), start("4", "because"), start("5", "because")])
    assert all(text.startswith(("changed", "LostTurnError")) for text in told)
    made = plans()
    assert made[0]["after"]["champion"] == "2"
    assert aliases() == {alias: version for alias, version in made[-1]["after"].items() if version}
