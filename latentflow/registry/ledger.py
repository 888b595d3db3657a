"""Turns: one process at a time changes a registered model's aliases, on all machines, through MLflow itself.

MLflow sets aliases one by one, without transactions, and has no lock. What it has is a run's parameter, which is
written once: of two who write different values the database refuses the second. So a registered model has a run, its
ledger, and the turns are that run's parameters: who writes `0007` has the seventh turn, `0007.plan` says which aliases
are about to move, and `0007.end` gives the turn back. Nobody writes `0008` before.

A turn that does not end is taken to be of a dead process once another process has watched it for ``LEASE_SECONDS``
(by its own clock, so clocks need not agree); whoever comes next finishes what was planned. A process that was only
slow notices before each alias that it sets, and when it ends its turn; then it brings the aliases back to the newest
plan. So as long as processes live, aliases end as the newest plan has them, never as a mix of two. What MLflow does
not allow: to move two aliases in one instant. For the moment of a change a reader may see the champion of before.
"""

import json
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from latentflow.errors import RegistryError
from latentflow.registry import marks, store
from latentflow.registry.lineage import author

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LEASE_SECONDS = 30.0
POLL_SECONDS = 0.2
PATIENCE = 10
SETTLE_SECONDS = 1.0
_DONE, _BROKEN = "done", "broken off"

Aliases = Mapping[str, str]
"""Alias and version number; "" where the alias is on no version."""

log = logging.getLogger(__name__)


class LostTurnError(RegistryError):
    """The turn took so long that others took its process to be dead."""


class Turn:
    """The right to change a registered model's aliases, those of ``names``, while it lasts."""

    def __init__(self, ledger: "_Ledger", name: str, names: Iterable[str], number: int) -> None:
        self._ledger = ledger
        self._name = name
        self._names = tuple(names)
        self._number = number

    def aliases(self) -> dict[str, str]:
        """Where the aliases are now: version numbers, "" for none."""
        return _read_aliases(self._ledger.client, self._name, self._names)

    def move(self, after: Aliases) -> None:
        """Moves the aliases that ``after`` names, in its order; at most once in a turn."""
        before = self.aliases()
        plan = {**after, **{alias: version for alias, version in before.items() if alias not in after}}
        if before != plan:
            text = json.dumps({"before": before, "after": plan})
            self._require(self._ledger.write(_key(self._number, "plan"), text))
            _apply(self._ledger.client, self._name, plan, check=self._check)

    def _check(self) -> None:
        self._require(_key(self._number, "end") not in self._ledger.read())

    def _require(self, mine: bool) -> None:
        if not mine:
            raise _lost(self._name)


def _lost(name: str) -> LostTurnError:
    return LostTurnError(
        f"This change of {name!r} stood still for over {LEASE_SECONDS:g} s and another one took its turn; the aliases "
        "are as that one left them: repeat the command if it is still wanted."
    )


@contextmanager
def turn(client: "MlflowClient", name: str, names: Iterable[str], purpose: str) -> Iterator[Turn]:
    """Waits for the turn at the aliases ``names`` of the registered model ``name``, which must exist, and holds it.

    What a process that died in its turn left half done is finished first. Raises RegistryError when others keep the
    turn for minutes, LostTurnError when this one took too long.
    """
    with store.store_lock():
        ledger = _Ledger(client, _ledger_run(client, name))
        number, outcome = ledger.claim(purpose), _BROKEN
        try:
            _finish(ledger, name)
            yield Turn(ledger, name, names, number)
            outcome = _DONE
        finally:
            mine = ledger.write(_key(number, "end"), f"{outcome} by {ledger.holder}")
            if not mine:
                _restore(ledger, name)
        if not mine:
            raise _lost(name)


def _read_aliases(client: "MlflowClient", name: str, wanted: Iterable[str]) -> dict[str, str]:
    """Where the ``wanted`` aliases are, in their order."""
    found = client.get_registered_model(name).aliases
    return {alias: str(found.get(alias, "")) for alias in wanted}


def create_model(client: "MlflowClient", name: str) -> None:
    """Creates the registered model with its ledger, unless it is there."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
        return
    except MlflowException as error:
        if not store.is_missing(error):
            raise
    run_id = _new_run(client, name)
    try:
        client.create_registered_model(name, tags={marks.LEDGER: run_id})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.delete_run(run_id)


class _Ledger:
    """The parameters of one run."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client = client
        self.holder = f"{author()} ({uuid.uuid4().hex[:12]})"
        self._run_id = run_id

    def read(self) -> dict[str, str]:
        return dict(self.client.get_run(self._run_id).data.params)

    def write(self, key: str, text: str) -> bool:
        """Writes once; False when another value is there already."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_param(self._run_id, key, text, synchronous=True)
        except MlflowException:
            if (present := self.read().get(key)) is None:
                raise
            return present == text
        return True

    def claim(self, purpose: str) -> int:
        """Waits until no turn is open and writes the next one; its number."""
        watched, since, start = 0, time.monotonic(), time.monotonic()
        while True:
            entries = self.read()
            last = max((int(key) for key in entries if key.isdigit()), default=0)
            if not last or _key(last, "end") in entries:
                if self.write(_key(last + 1), f"{purpose}; {self.holder}"):
                    return last + 1
                continue
            now = time.monotonic()
            if last != watched:
                watched, since = last, now
                log.debug("waiting for turn %d: %s", last, entries[_key(last)])
            elif now - since >= LEASE_SECONDS:
                log.warning("turn %d did not end (%s); it is taken over", last, entries[_key(last)])
                self.write(_key(last, "end"), f"taken over by {self.holder}")
                continue
            if now - start > PATIENCE * LEASE_SECONDS:
                raise RegistryError(f"Others kept changing this model ({entries[_key(last)]}): repeat the command.")
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))


def _key(number: int, part: str = "") -> str:
    return f"{number:04d}.{part}" if part else f"{number:04d}"


def _ledger_run(client: "MlflowClient", name: str) -> str:
    """The run that the model's tag names; a model of another maker, or one whose ledger was deleted, gets a new one."""
    run_id = _named_run(client, name)
    if not run_id:
        client.set_registered_model_tag(name, marks.LEDGER, _new_run(client, name))
        # Of two that do so at once the last one's stays.
        time.sleep(SETTLE_SECONDS)
        run_id = _named_run(client, name)
    return run_id


def _named_run(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    run_id = str(client.get_registered_model(name).tags.get(marks.LEDGER, ""))
    try:
        return run_id if run_id and client.get_run(run_id).info.lifecycle_stage == "active" else ""
    except MlflowException as error:
        if not store.is_missing(error):
            raise
        return ""


def _new_run(client: "MlflowClient", name: str) -> str:
    run = client.create_run(store.experiment_id(client), tags={marks.LEDGER: name}, run_name=f"aliases of {name}")
    client.update_run(run.info.run_id, status="FINISHED")  # set_terminated prints its address
    return str(run.info.run_id)


def _apply(client: "MlflowClient", name: str, after: Aliases, check: Callable[[], None] | None = None) -> None:
    """Moves what is not there yet, one by one; ``check`` is called before each."""
    from mlflow.exceptions import MlflowException

    now = _read_aliases(client, name, after)
    for alias, version in after.items():
        if now[alias] == version:
            continue
        if check:
            check()
        if version:
            client.set_registered_model_alias(name, alias, version)
        else:
            try:
                client.delete_registered_model_alias(name, alias)
            except MlflowException as error:
                if not store.is_missing(error):
                    raise


def _finish(ledger: _Ledger, name: str) -> None:
    """Finishes the newest plan if its process died; aliases that a person has moved since are left alone."""
    entries = ledger.read()
    number, plan = _newest_plan(entries)
    ended = entries.get(_key(number, "end"), "")
    if not plan or ended.startswith(_DONE) or _key(number, "finished") in entries:
        return
    now = _read_aliases(ledger.client, name, plan["after"])
    if all(now[alias] in (plan["before"][alias], plan["after"][alias]) for alias in now):
        log.warning("finishing what turn %d of %r planned and did not complete", number, name)
        _follow(ledger.client, name, plan["after"])
    ledger.write(_key(number, "finished"), f"by {ledger.holder}")


def _restore(ledger: _Ledger, name: str) -> None:
    """Undoes what this process may have written after it lost its turn: the newest plan again, in a new turn.

    That turn may be lost too, by a process that is slow enough; then once more.
    """
    kept = False
    while not kept:
        number = ledger.claim("restoring")
        try:
            _, plan = _newest_plan(ledger.read())
            if plan:
                _follow(ledger.client, name, plan["after"])
        finally:
            kept = ledger.write(_key(number, "end"), f"{_DONE} by {ledger.holder}")


def _follow(client: "MlflowClient", name: str, after: Aliases) -> None:
    """Applies another process's plan; a version that was deleted meanwhile is no reason to refuse every later turn."""
    from mlflow.exceptions import MlflowException

    try:
        _apply(client, name, after)
    except MlflowException as error:
        if not store.is_missing(error):
            raise
        log.warning("the plan %s of %r cannot be completed: %s", dict(after), name, error)


def _newest_plan(entries: Mapping[str, str]) -> tuple[int, dict[str, dict[str, str]]]:
    numbers = [int(key.partition(".")[0]) for key in entries if key.endswith(".plan")]
    return (max(numbers), json.loads(entries[_key(max(numbers), "plan")])) if numbers else (0, {})
