"""One look for every progress bar, and none where nobody looks at a terminal."""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    unit: str = "it",
    note: Callable[[], str] = str,
) -> Iterator[T]:
    """Yields ``items`` under a bar with rate, time left and what ``note`` says, on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total, rate="", note="")
        for item in items:
            yield item
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.1f} {unit}/s" if speed else "", note=note())
