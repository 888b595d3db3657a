"""Batches made ahead of the step that uses them, and their shards fetched ahead of that, in threads."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from latentflow.training.batches import Batch, Batches

READY = 2
FETCHERS = 4
# Batches whose shards are asked for ahead where rows are shuffled over the whole split.
AHEAD = 16


@contextmanager
def ahead(batches: Batches, steps: range) -> Iterator[Iterator[Batch]]:
    """The batches of ``steps`` in order, of which ``READY`` are made while another is in use.

    What a thread raises comes out here, at its step. The threads end with the context.
    """
    maker, fetchers = ThreadPoolExecutor(1), ThreadPoolExecutor(FETCHERS)
    try:
        yield _batches(batches, steps, maker, fetchers)
    finally:
        maker.shutdown(cancel_futures=True)
        fetchers.shutdown(cancel_futures=True)


def _batches(
    batches: Batches, steps: range, maker: ThreadPoolExecutor, fetchers: ThreadPoolExecutor
) -> Iterator[Batch]:
    waiting: deque[Future[Batch]] = deque()
    horizon, asked = max(AHEAD, batches.order.steps_per_window()), steps.start
    for step in steps:
        while batches.split.remote and asked < min(step + horizon, steps.stop):
            # What fails here fails again, and is told, when its batch is made.
            fetchers.submit(batches.fetch(asked))
            asked += 1
        waiting.append(maker.submit(batches.at, step))
        if len(waiting) > READY:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
