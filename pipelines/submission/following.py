"""Following a run to its end: one line per task, patience with a server that hiccups, the log of what failed."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from latentflow.errors import LatentflowError
from pipelines.submission.connection import CredentialsError, Kubeflow, KubeflowError, UnavailableError
from pipelines.submission.tasks import FAILED, WAITING, Task, tasks_of

_FINISHED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "ERROR")
_LOOKS = {"running": "cyan", "succeeded": "green", "skipped": "green", FAILED: "bold red", "canceled": "yellow"}
_LOG_LINES = 20


@dataclass(frozen=True)
class Watch:
    """How a run is followed, in seconds: between looks, in all (None: to its end), and through a server's faults."""

    poll: float = 5.0
    timeout: float | None = None
    patience: float = 900.0


@dataclass(frozen=True)
class Outcome:
    """How a followed run ended."""

    run: Any
    tasks: Sequence[Task]

    @property
    def succeeded(self) -> bool:
        """Whether it did what it was to do."""
        return self.run.state in ("SUCCEEDED", "SKIPPED")

    @property
    def failed(self) -> list[Task]:
        """The tasks that failed."""
        return [task for task in self.tasks if task.state == FAILED]


class TimedOutError(LatentflowError):
    """The time for following is over; the run goes on."""


class Screen:
    """Where progress is shown: a table that is drawn anew on a terminal, a line per change elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._told: dict[str, str] = {}

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, state: str, tasks: Sequence[Task]) -> None:
        """Shows every task's state."""
        now = datetime.now(UTC)
        if self._live:
            self._live.update(_table(state, tasks, now), refresh=True)
            return
        for task in tasks:
            told = f"{task.state}{_parts(task)}{_retries(task)}"
            if task.state != WAITING and self._told.get(task.name) != told:
                self._told[task.name] = told
                self.console.print(f"{task.name}: {told}{_clock(task.seconds(now), ', ')}", highlight=False)

    def note(self, sentence: str) -> None:
        """Shows a sentence above the table, or as a line."""
        self.console.print(Text(sentence), highlight=False, soft_wrap=True)


def follow(kubeflow: Kubeflow, run_id: str, names: Sequence[str], watch: Watch, screen: Screen) -> Outcome:
    """Looks at a run until it ends.

    Raises TimedOutError after ``watch.timeout``, CredentialsError when the token expired and none can be read anew,
    UnavailableError when the server is silent for longer than ``watch.patience``.
    """
    end = None if watch.timeout is None else time.monotonic() + watch.timeout
    while True:
        run = _patiently(kubeflow, lambda: _look(kubeflow, run_id), watch, end, screen)
        tasks = tasks_of(run, names)
        if run.state in _FINISHED:
            # A branch that was not taken, or what would have come after a failure.
            tasks = [replace(task, state="not run") if task.state == WAITING else task for task in tasks]
        screen.show(run.state or "PENDING", tasks)
        if run.state in _FINISHED:
            return Outcome(run, tasks)
        _wait(watch.poll, end)


def log_tail(kubeflow: Kubeflow, run_id: str, task: Task) -> list[str]:
    """The last lines of a failed task's log, where the API or the UI's server gives them; else nothing."""
    for pod in task.pods:
        for path, query in (
            (f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", []),
            ("/k8s/pod/logs", [("podname", pod), ("runid", run_id), ("podnamespace", kubeflow.namespace or "")]),
        ):
            asked = [(name, value) for name, value in query if value]
            try:
                text = kubeflow.ask("give a log", partial(kubeflow.client.text, path, asked))
            except KubeflowError:
                continue
            # The UI's server answers a path that it does not know with its start page.
            if text.strip() and not text.lstrip().lower().startswith(("<!doctype", "<html")):
                return list(deque(text.rstrip().splitlines(), maxlen=_LOG_LINES))
    return []


def _look(kubeflow: Kubeflow, run_id: str) -> Any:
    run = kubeflow.ask(f"show run {run_id}", lambda: kubeflow.client.get_run(run_id))
    if run.run_id is None:
        raise CredentialsError(f"{kubeflow.shown} answers with a login page: the session or token has expired.")
    return run


def _patiently(kubeflow: Kubeflow, look: Callable[[], Any], watch: Watch, end: float | None, screen: Screen) -> Any:
    """``look()``, tried again with growing pauses while the server hiccups; each kind of fault is told once."""
    give_up, pause, told = time.monotonic() + watch.patience, watch.poll, ""
    fault: KubeflowError
    while True:
        try:
            run = look()
        except UnavailableError as error:
            fault, more = error, "Trying again."
        except CredentialsError as error:
            if not kubeflow.connection.renews_itself:
                raise
            fault, more = error, "Trying again with what the token's file holds then."
        else:
            if told:
                screen.note(f"{kubeflow.shown} answers again.")
            return run
        if time.monotonic() > give_up:
            raise fault
        if str(fault) != told:
            told = str(fault)
            screen.note(f"{told} {more}")
        _wait(pause, end)
        pause = min(2 * pause, 60.0)


def _wait(seconds: float, end: float | None) -> None:
    if end is not None and time.monotonic() + seconds > end:
        raise TimedOutError("The time given by --timeout is over.")
    time.sleep(seconds)


def _table(state: str, tasks: Sequence[Task], now: datetime) -> Group:
    table = Table.grid(padding=(0, 2))
    for task in tasks:
        looks = _LOOKS.get(task.state, "dim")
        table.add_row(
            task.name, Text(task.state + _parts(task), looks), _clock(task.seconds(now)), _retries(task).lstrip(", ")
        )
    return Group(Text(f"run {state.lower()}", _LOOKS.get(state.lower(), "bold")), table)


def _parts(task: Task) -> str:
    return f" {task.parts_done}/{task.parts}" if task.parts > 1 else ""


def _retries(task: Task) -> str:
    if not task.retries:
        return ""
    return f", {task.retries} {'retry' if task.retries == 1 else 'retries'}"


def _clock(seconds: float | None, before: str = "") -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{before}{hours}:{minutes:02}:{rest:02}" if hours else f"{before}{minutes}:{rest:02}"
