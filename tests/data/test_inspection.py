"""Checks in worker processes: the same bytes for any number, and an end without a hang when one dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ingest_helpers import append, encoded, ingest_inputs, make_folder, scene

from latentflow.data.inspection import Inspectors
from latentflow.data.media_refs import BytesMedia
from latentflow.data.refusal import Refusal
from latentflow.data.sources import Candidate
from latentflow.data.validation import Checked, Limits
from latentflow.errors import LatentflowError
from latentflow.steps import ingest

LIMITS = Limits(1, 20_000)


@dataclass(frozen=True)
class Deadly:
    """Media whose reader is killed, as the kernel does when memory runs out."""

    def read(self) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""


@dataclass(frozen=True)
class Slow:
    """Media that take a while to arrive."""

    seconds: float
    data: bytes

    def read(self) -> bytes:
        time.sleep(self.seconds)
        return self.data


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_folder(tmp_path / "pictures")
    for number in range(60):
        (folder / f"more-{number}.jpg").write_bytes(encoded(scene(number % 50), "JPEG"))
        append(folder, file_name=f"more-{number}.jpg", text="" if number % 9 == 0 else "text")
    for workers in (1, 2, 3):
        ingest.run(ingest_inputs(folder, workers=workers), tmp_path / str(workers))
    files = [path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_results_keep_the_order_although_later_ones_are_ready_first() -> None:
    good = encoded(scene(0))
    candidates = [Candidate(str(n), "x", Slow(0.1 if n % 7 == 0 else 0, good if n % 3 else b"")) for n in range(30)]
    with Inspectors(3, LIMITS) as inspectors:
        results = list(inspectors.run(candidates))
    assert [result.id for result in results] == [str(n) for n in range(30)]
    assert [isinstance(result, Refusal) for result in results] == [n % 3 == 0 for n in range(30)]


def test_the_source_is_read_no_further_than_the_workers_need() -> None:
    taken = 0

    def endless() -> Iterator[Candidate]:
        nonlocal taken
        while True:
            taken += 1
            yield Candidate(str(taken), "x", BytesMedia(b""))

    with Inspectors(2, LIMITS) as inspectors:
        results = inspectors.run(endless())
        for _ in range(1000):
            assert next(results).id
    assert taken < 1000 + 5 * 64


def test_a_worker_that_is_killed_ends_the_step_with_a_sentence() -> None:
    good = Candidate("good", "x", BytesMedia(encoded(scene(0))))
    with (
        Inspectors(2, LIMITS) as inspectors,
        pytest.raises(LatentflowError, match=r"was killed .* lower ingest\.workers"),
    ):
        list(inspectors.run([good] * 100 + [Candidate("deadly", "x", Deadly())] + [good] * 100))


def test_an_error_that_is_no_refusal_comes_through() -> None:
    with Inspectors(2, LIMITS) as inspectors, pytest.raises(AttributeError):
        list(inspectors.run([Candidate("odd", "x", 3)]))  # type: ignore[arg-type]


def test_one_worker_is_this_process() -> None:
    before = set(psutil.Process().children())  # Other tests' fork server may be there.
    with Inspectors(1, LIMITS) as inspectors:
        (result,) = inspectors.run([Candidate("a", "x", BytesMedia(encoded(scene(0))))])
    assert isinstance(result, Checked)
    assert set(psutil.Process().children()) <= before


# Ctrl-C is ignored by what a shell starts in the background, and with it by these tests' children there.
SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from test_inspection import LIMITS, Slow
from latentflow.data.inspection import Inspectors
from latentflow.data.sources import Candidate

with Inspectors(2, LIMITS) as inspectors:
    for number, result in enumerate(inspectors.run(Candidate(str(n), "x", Slow(0.02, b"")) for n in range(10**9))):
        if number == 20:
            print("running", flush=True)
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_killed_parent_leave_no_process(stop: signal.Signals) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join((str(here), str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 2
    if stop == signal.SIGINT:
        # As a terminal does: to the parent and its workers alike.
        os.killpg(process.pid, stop)
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    assert not psutil.wait_procs(workers, timeout=60)[1]
    if stop == signal.SIGINT:
        assert errors.count("Traceback") == 1
        assert "KeyboardInterrupt" in errors
