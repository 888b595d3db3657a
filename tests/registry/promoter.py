"""One process that promotes: `python promoter.py <version> <reason> [die|stall]`; it prints what came of it.

`die` kills the process between two aliases, `stall` lets it stand still there for longer than its turn.
LEASE_SECONDS in the environment shortens the turns.
"""

import os
import sys
import time

from mlflow.tracking import MlflowClient

from latentflow.errors import LatentflowError
from latentflow.registry import ledger, promotion, store
from latentflow.registry.pulling import ModelUri

SET = MlflowClient.set_registered_model_alias


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def die(self: MlflowClient, name: str, alias: str, version: str) -> None:
    if alias == "champion":
        os._exit(9)
    SET(self, name, alias, version)


def stall(self: MlflowClient, name: str, alias: str, version: str) -> None:
    if alias == "champion":
        time.sleep(3 * ledger.LEASE_SECONDS)
    SET(self, name, alias, version)


def main(version: str, reason: str, trouble: str = "") -> None:
    ledger.LEASE_SECONDS = float(os.environ.get("LEASE_SECONDS", ledger.LEASE_SECONDS))
    if trouble:
        MlflowClient.set_registered_model_alias = {"die": die, "stall": stall}[trouble]
    client = store.connect()
    tell("ready")
    sys.stdin.readline()
    try:
        tell(f"changed {promotion.promote(client, ModelUri('tiny', '', version), reason)}")
    except LatentflowError as error:
        tell(f"{type(error).__name__} {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
