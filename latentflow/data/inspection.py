"""Candidates through their checks in worker processes, a bounded number at a time, results in the source's order."""

import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from types import TracebackType
from typing import Self

from latentflow.data.refusal import Refusal, RefusedError
from latentflow.data.sources import Candidate
from latentflow.data.validation import Checked, Limits, check
from latentflow.errors import LatentflowError

# What one message to the parent should weigh: small pictures travel together, large ones alone. Larger messages
# would be given fresh memory by the system every time, which costs more than sending them.
_CHUNK_BYTES = 2**19
_MOST = 64
# malloc.h, and what a worker may keep; several times a decoded picture of twelve million pixels.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**28


def inspect(candidate: Candidate, limits: Limits) -> Checked | Refusal:
    """A candidate's check as a value, for good or bad."""
    try:
        return check(candidate, limits)
    except RefusedError as error:
        return Refusal(candidate.id, error.fault, str(error))


class Inspectors:
    """Worker processes that check candidates; ``workers`` 0 is one per core, 1 checks in this process.

    A context manager. The processes start before anything else does, so that no thread of the caller's is copied.
    """

    def __init__(self, workers: int, limits: Limits) -> None:
        self._workers = workers or len(os.sched_getaffinity(0))
        self._limits = limits
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._workers > 1:
            # A fork needs no importable main module and shares the parent's memory; macOS has no safe one.
            context = get_context("fork" if sys.platform == "linux" else "spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, _start_worker)
            self._pool.submit(os.getpid).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, candidates: Iterable[Candidate]) -> Iterator[Checked | Refusal]:
        """Every candidate's result, in order. Raises LatentflowError when a worker process died."""
        if self._pool is None:
            yield from (inspect(candidate, self._limits) for candidate in candidates)
            return
        pending: deque[Future[list[Checked | Refusal]]] = deque()
        source, size, last = iter(candidates), 1, "the first record"
        while True:
            while len(pending) < 2 * self._workers and (chunk := list(islice(source, size))):
                pending.append(self._pool.submit(_inspect_all, chunk, self._limits))
            if not pending:
                return
            results = _result(pending.popleft(), last)
            yield from results
            size, last = _next_size(results), f"record {results[-1].id}"


def _inspect_all(candidates: list[Candidate], limits: Limits) -> list[Checked | Refusal]:
    return [inspect(candidate, limits) for candidate in candidates]


def _result(future: "Future[list[Checked | Refusal]]", last: str) -> list[Checked | Refusal]:
    try:
        return future.result()
    except BrokenProcessPool:
        raise LatentflowError(
            f"a worker process of ingest was killed soon after {last}, most likely for want of memory: lower "
            "ingest.workers, or lower ingest.max_side to refuse very large pictures."
        ) from None


def _next_size(results: list[Checked | Refusal]) -> int:
    """Records per message, from what the last ones weighed; what is written does not depend on it."""
    weight = sum(len(result.media) for result in results if isinstance(result, Checked)) / len(results)
    return max(1, min(_MOST, int(_CHUNK_BYTES / max(weight, 1))))


def _start_worker() -> None:
    """Ctrl-C is the parent's affair, and a worker does not outlive its parent, however that ended."""
    _keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _keep_freed_memory() -> None:
    """Lets glibc hand freed memory out again instead of returning it to the system.

    Every decoded picture is a block above glibc's thresholds: without this, a third of the time goes into page faults.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(option, _KEPT_BYTES)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
