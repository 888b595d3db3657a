"""A look into a local registry without MLflow, whose import alone takes seconds: `register` runs at every `dvc repro`.

It only ever answers "this is registered, and there is nothing to do". Whatever it does not find or understand
(a server, other tables in another MLflow) is None, and the way through MLflow's client follows.
"""

import os
import sqlite3
from contextlib import closing

from latentflow.params import RegisterParams
from latentflow.registry.store import sqlite_file
from latentflow.registry.versions import EVALUATION, MODEL_DIGEST, Version
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


def registered(params: RegisterParams, model_digest: str, evaluation: str) -> Version | None:
    """The version of this model with this evaluation, if it is there with the alias that it would be given now."""
    database = sqlite_file(tracking_uri())
    if database is None or not database.is_file() or os.environ.get("MLFLOW_REGISTRY_URI"):
        return None
    wanted = {"name": params.name, "model": model_digest, "evaluation": evaluation}
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            keys = {"model_key": MODEL_DIGEST, "evaluation_key": EVALUATION}
            found = connection.execute(_FIND, {**wanted, **keys}).fetchone()
            query = "select alias, version from registered_model_aliases where name = :name"
            aliases = dict(connection.execute(query, {"name": params.name}).fetchall())
    except sqlite3.Error:
        return None
    if found is None:
        return None
    for alias in (params.champion_alias, params.challenger_alias):
        if aliases.get(alias) == found[0] and params.champion_alias in aliases:
            return Version(params.name, str(found[0]), alias, found[1] or "")
    return None
