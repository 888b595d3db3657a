"""Batches of one size over any number of rows: what encoders are always given."""

from collections.abc import Iterator


def full_batches(count: int, batch_size: int) -> Iterator[tuple[list[int], int]]:
    """Indices of full batches over ``count`` rows and how many of each are new.

    The last batch is filled up with its last row: a batch of another size differs in the last bit.
    """
    for start in range(0, count, batch_size):
        rows = list(range(start, min(start + batch_size, count)))
        yield rows + [rows[-1]] * (batch_size - len(rows)), len(rows)
