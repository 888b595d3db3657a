"""Batches made ahead of the step that uses them, and their shards fetched ahead of that, in threads."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T", covariant=True)

READY = 2
FETCHERS = 4


class Batches(Protocol[T]):
    """What gives the batch of a step; ``horizon`` is how many steps ahead its shards are worth fetching."""

    remote: bool
    horizon: int

    def at(self, step: int) -> T:
        """The batch of a step; called in one thread, in order."""

    def fetch(self, step: int) -> Callable[[], None]:
        """What brings a step's shards here, to be called in any thread; asked for in order."""


@contextmanager
def ahead(batches: Batches[T], steps: range) -> Iterator[Iterator[T]]:
    """The batches of ``steps`` in order, of which ``READY`` are made while another is in use.

    What a thread raises comes out here, at its step. The threads end with the context.
    """
    maker, fetchers = ThreadPoolExecutor(1), ThreadPoolExecutor(FETCHERS)
    try:
        yield _batches(batches, steps, maker, fetchers)
    finally:
        maker.shutdown(cancel_futures=True)
        fetchers.shutdown(cancel_futures=True)


def _batches(batches: Batches[T], steps: range, maker: ThreadPoolExecutor, fetchers: ThreadPoolExecutor) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    asked = steps.start
    for step in steps:
        while batches.remote and asked < min(step + batches.horizon, steps.stop):
            # What fails here fails again, and is told, when its batch is made.
            fetchers.submit(batches.fetch(asked))
            asked += 1
        waiting.append(maker.submit(batches.at, step))
        if len(waiting) > READY:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
