"""An MLflow server on this machine for as long as something needs one."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentflow.errors import LatentflowError

PATIENCE = 180  # seconds; a cold start takes ten, on a busy machine many more


@contextmanager
def mlflow_server(folder: Path, port: int | None = None) -> Iterator[str]:
    """The address of a server that keeps runs, registry and artifacts below ``folder`` and ends with the context."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or _free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    database = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
    places = ["--backend-store-uri", database, "--artifacts-destination", str((folder / "artifacts").absolute())]
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *places],
            cwd=folder,
            stdout=output,
            stderr=output,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
    try:
        _await(uri, process, log)
        yield uri
    finally:
        process.terminate()
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def _await(uri: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise LatentflowError(f"The MLflow server at {uri} did not start: see {log}.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
