"""A real `mlflow server` that keeps the artifacts, over sqlite or PostgreSQL, that can be killed and started again."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

PATIENCE = 240


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Server:
    """`mlflow server` on one port and one database, through as many lives as a test wants."""

    def __init__(self, folder: Path, database: str) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder, self._database = folder, database
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self._database, "--artifacts-destination", str(self._folder / "kept")]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Its processes for background jobs are not needed here and take the longest to start.
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        for _ in range(PATIENCE * 2):
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError((self._folder / "server.log").read_text())

    def kill(self) -> None:
        """All of its processes at once, with whatever they are in the middle of."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """The address of a fresh PostgreSQL for as long as the context lasts; skips the test where there is none."""
    programs = [Path(path) for path in ("/usr/lib/postgresql", "/usr/local/lib/postgresql")]
    initdb = shutil.which("initdb") or next((str(p) for root in programs for p in root.glob("*/bin/initdb")), None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    if find_spec("pg8000") is None:
        pytest.skip("the driver pg8000 is not installed (pip install -e '.[dev]')")
    # It refuses to run as root.
    user = None if os.getuid() else _other_user()
    data, port = Path(tempfile.mkdtemp(prefix="latentflow-postgresql-")), free_port()
    if user:
        shutil.chown(data, user)
    bin_folder = Path(initdb).resolve().parent
    made = [initdb, "--pgdata", str(data), "--username", "mlflow", "--auth", "trust", "--no-sync"]
    subprocess.run(made, user=user, cwd="/", check=True, capture_output=True)
    options = ["-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    with (folder / "postgresql.log").open("w") as log:
        process = subprocess.Popen([str(bin_folder / "postgres"), *options], user=user, cwd="/", stdout=log, stderr=log)
    try:
        _await_port(port, process, folder / "postgresql.log")
        yield f"postgresql+pg8000://mlflow@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        shutil.rmtree(data)


def _other_user() -> str:
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    pytest.skip("PostgreSQL refuses to run as root, and there is no other user")


def _await_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(PATIENCE * 2):
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
