"""A look into a local registry without MLflow, whose import alone takes seconds: `register` runs at every `dvc repro`.

It only ever answers "this is registered and judged, and there is nothing to do". Whatever it does not find or
understand (a server, other tables in another MLflow) is None, and the way through MLflow's client follows.
"""

import os
import sqlite3
from contextlib import closing

from latentflow.params import RegisterParams
from latentflow.registry import marks
from latentflow.registry.gate import Status, rules_key
from latentflow.registry.store import sqlite_file
from latentflow.registry.versions import Version
from latentflow.workspace import tracking_uri

_FIND = """
    select version, run_id from model_versions
    join model_version_tags as model using (name, version)
    join model_version_tags as evaluation using (name, version)
    where name = :name and status = 'READY' and current_stage <> 'Deleted_Internal'
      and model.key = :model_key and model.value = :model
      and evaluation.key = :evaluation_key and evaluation.value = :evaluation
    order by version limit 1
"""
_ALIASES = "select alias, version from registered_model_aliases where name = :name"
_TAGS = "select key, value from model_version_tags where name = :name and version = :version"


def registered(params: RegisterParams, model_digest: str, evaluation: str) -> Version | None:
    """The version of this model with this evaluation, if it has the verdict and alias that it would be given now."""
    database = sqlite_file(tracking_uri())
    if database is None or not database.is_file() or os.environ.get("MLFLOW_REGISTRY_URI"):
        return None
    wanted = {"name": params.name, "model": model_digest, "evaluation": evaluation}
    keys = {"model_key": marks.MODEL_DIGEST, "evaluation_key": marks.EVALUATION}
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            found = connection.execute(_FIND, {**wanted, **keys}).fetchone()
            if found is None:
                return None
            number, run_id = found
            aliases = dict(connection.execute(_ALIASES, {"name": params.name}).fetchall())
            tags = dict(connection.execute(_TAGS, {"name": params.name, "version": number}).fetchall())
    except sqlite3.Error:
        return None
    alias = _settled(params, number, aliases, tags)
    if alias is None:
        return None
    told = [tags.get(mark, "") for mark in (marks.STATUS, marks.CHAMPION, marks.RULES)]
    return Version(params.name, str(number), alias, run_id or "", *told)


def _settled(params: RegisterParams, number: int, aliases: dict[str, int], tags: dict[str, str]) -> str | None:
    """The alias of a version that is as register would leave it, "" for none; None where something is to be done."""
    champion = aliases.get(params.champion_alias)
    if champion == number:
        return params.champion_alias
    if champion is None or tags.get(marks.RULES) != rules_key(params.gate, str(champion)):
        return None
    challenges = aliases.get(params.challenger_alias) == number
    status = Status(tags[marks.STATUS])
    if status.refused:
        return None if challenges else ""
    if status is Status.PASSED and params.promote == "when_passed":
        return None
    return params.challenger_alias if challenges else None
