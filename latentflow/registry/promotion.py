"""Which version is the champion, the challenger, the previous champion; who changed that, when and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from latentflow.errors import LatentflowError, RegistryError
from latentflow.registry import ledger, marks, store
from latentflow.registry.lineage import author
from latentflow.registry.pulling import ModelUri, find_model, find_version

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from latentflow.params import RegisterParams

REASON_LENGTH = 1000


class Aliases(NamedTuple):
    """What the three aliases are called."""

    champion: str = "champion"
    challenger: str = "challenger"
    previous: str = "previous"

    @classmethod
    def of(cls, params: "RegisterParams") -> "Aliases":
        return cls(params.champion_alias, params.challenger_alias, params.previous_alias)


@dataclass(frozen=True)
class Change:
    """Where the aliases were and are: alias and version number, "" for none."""

    name: str
    before: Mapping[str, str]
    after: Mapping[str, str]

    def __str__(self) -> str:
        moved = [
            f"@{alias}: {_shown(self.before[alias])} -> {_shown(version)}"
            for alias, version in self.after.items()
            if self.before[alias] != version
        ]
        return f"{self.name}: {', '.join(moved) or 'nothing to change'}"


def promote(client: "MlflowClient", wanted: ModelUri, reason: str = "", aliases: Aliases | None = None) -> Change:
    """Makes a version the champion, and the champion the previous one.

    Without a ``reason`` only a version that passed the gate against the champion of now is promoted; with one, any.
    Raises RegistryError, with nothing changed, when that is not so or the version is not there.
    """
    aliases = aliases or Aliases()
    reason = _checked(reason)
    find_version(client, wanted)  # A name or version that is not there needs no turn to be refused.
    with ledger.turn(client, wanted.name, aliases, f"promote {_address(wanted)}") as turn:
        version = find_version(client, wanted)
        now = turn.aliases()
        number = str(version.version)
        if now[aliases.champion] == number:
            return Change(wanted.name, now, now)
        if not reason:
            reason = _passed(version, now[aliases.champion], aliases)
        return crown(client, turn, version, aliases, reason)


def crown(client: "MlflowClient", turn: ledger.Turn, version: "ModelVersion", aliases: Aliases, reason: str) -> Change:
    """Makes ``version`` the champion, inside a turn."""
    name, number = version.name, str(version.version)
    now = turn.aliases()
    # In this order whoever reads @champion meanwhile gets the old one or the new one.
    after = {aliases.previous: now[aliases.champion] or now[aliases.previous], aliases.champion: number}
    after[aliases.challenger] = "" if now[aliases.challenger] == number else now[aliases.challenger]
    turn.move(after)
    _tell(client, name, number, "promoted", reason)
    if replaced := now[aliases.champion]:
        _tell(client, name, replaced, "retired", f"version {number} was promoted: {reason}")
    return Change(name, now, after)


def rollback(client: "MlflowClient", name: str, reason: str, aliases: Aliases | None = None) -> Change:
    """Exchanges the champion and the previous one. Raises RegistryError where there is no previous one."""
    aliases = aliases or Aliases()
    if not (reason := _checked(reason)):
        raise LatentflowError("A rollback needs a reason: say in --reason what is wrong with the champion.")
    find_model(client, name)
    with ledger.turn(client, name, aliases, "rollback") as turn:
        now = turn.aliases()
        bad, good = now[aliases.champion], now[aliases.previous]
        if not good:
            raise RegistryError(
                f"Model {name!r} has no version @{aliases.previous} to go back to: promote another version."
            )
        after = {aliases.champion: good, aliases.previous: bad}
        turn.move(after)
        _tell(client, name, good, "promoted", f"rollback: {reason}")
        if bad:
            _tell(client, name, bad, "retired", f"rollback: {reason}")
        return Change(name, now, {**now, **after})


def _passed(version: "ModelVersion", champion: str, aliases: Aliases) -> str:
    """The reason that the gate gives; RegistryError where it gives none."""
    status, against = version.tags.get(marks.STATUS, "unknown"), version.tags.get(marks.CHAMPION, "")
    what = f"Version {version.version} of {version.name!r}"
    if status != "passed":
        raise RegistryError(
            f"{what} has {marks.STATUS} {status!r}, not 'passed': read its description in MLflow, and give a "
            "--reason to promote it all the same."
        )
    if against != champion:
        raise RegistryError(
            f"{what} passed against {_shown(against)}, and @{aliases.champion} is {_shown(champion)} now: run "
            "`latentflow register` with it again, or give a --reason to promote it all the same."
        )
    return f"passed the gate against {_shown(against)}"


def _tell(client: "MlflowClient", name: str, number: str, what: str, reason: str) -> None:
    """Tags latentflow.<what>_at, _by, _because on a version that may have been deleted meanwhile."""
    from mlflow.exceptions import MlflowException

    values = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "by": author(), "because": reason}
    for key, value in values.items():
        try:
            client.set_model_version_tag(name, number, f"latentflow.{what}_{key}", value)
        except MlflowException as error:
            if not store.is_missing(error):
                raise


def _checked(reason: str) -> str:
    if len(reason) > REASON_LENGTH:
        raise LatentflowError(f"--reason has {len(reason)} characters, MLflow keeps {REASON_LENGTH}: shorten it.")
    return " ".join(reason.split())


def _address(wanted: ModelUri) -> str:
    return f"@{wanted.alias}" if wanted.alias else f"version {wanted.version}"


def _shown(number: str) -> str:
    return f"version {number}" if number else "none"
