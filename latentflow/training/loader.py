"""Batches made ahead of the step that uses them, and their shards fetched ahead of that, in threads."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

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


def ready_for(device: torch.device) -> int:
    """How many batches to make ahead for a model on ``device``.

    None on a CPU: a second thread that computes brings PyTorch's thread pool a second time, and the two take the cores
    from each other (a step of the demo's model took 1.45 times as long on 2 cores).
    """
    return 0 if device.type == "cpu" else READY


@contextmanager
def ahead(batches: Batches[T], steps: range, ready: int = READY) -> Iterator[Iterator[T]]:
    """The batches of ``steps`` in order, of which ``ready`` are made in a thread while another is in use.

    With 0 each is made when it is asked for. What a thread raises comes out here, at its step. The threads end with the
    context.
    """
    maker, fetchers = ThreadPoolExecutor(1), ThreadPoolExecutor(FETCHERS)
    try:
        yield _batches(batches, steps, ready, maker, fetchers)
    finally:
        maker.shutdown(cancel_futures=True)
        fetchers.shutdown(cancel_futures=True)


def _batches(
    batches: Batches[T], steps: range, ready: int, maker: ThreadPoolExecutor, fetchers: ThreadPoolExecutor
) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    asked = steps.start
    for step in steps:
        while batches.remote and asked < min(step + batches.horizon, steps.stop):
            # What fails here fails again, and is told, when its batch is made.
            fetchers.submit(batches.fetch(asked))
            asked += 1
        if not ready:
            yield batches.at(step)
            continue
        waiting.append(maker.submit(batches.at, step))
        if len(waiting) > ready:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
