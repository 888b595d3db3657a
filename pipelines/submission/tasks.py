"""A run as the API tells it, read as one line per task: state, time, retries, and the pods whose logs matter.

The API lists the nodes of the Argo workflow beneath: a task ``train`` is a node of that name around ``executor``, the
pod, whose attempts are ``executor(0)``, ``executor(1)``; drivers and the root are nodes too. A node tells its
children's ids but not its own, so an attempt finds its task by Argo's way to make ids: ``<workflow>-<FNV-1a of name>``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

RUNNING, FAILED, WAITING = "running", "failed", "waiting"
_STATES = {"PENDING": WAITING, "RUNTIME_STATE_UNSPECIFIED": WAITING, "ERROR": FAILED, "CANCELING": RUNNING}
# Whichever comes first speaks for all parts of a task.
_ORDER = (FAILED, RUNNING, "paused", WAITING, "canceled", "succeeded", "skipped")
_PLUMBING = re.compile(r"root|executor|.*-driver|.*\(.*\)|iteration-.*|.*-iterations?|for-loop-\d+|condition-.*")
_FNV_PRIME, _WORD = 0x01000193, 0xFFFFFFFF


@dataclass(frozen=True)
class Task:
    """One line: a task, or all parts of one that runs in a loop."""

    name: str
    state: str
    started: datetime | None = None
    ended: datetime | None = None
    parts: int = 1
    parts_done: int = 0
    retries: int = 0
    pods: tuple[str, ...] = ()
    """Names that the pod of a failed part can have, the last attempt's first."""

    def seconds(self, now: datetime) -> float | None:
        """From the first start to the last end; to ``now`` while it runs."""
        if self.started is None:
            return None
        return max(0.0, ((self.ended or now) - self.started).total_seconds())


def tasks_of(run: Any, names: Sequence[str] = ()) -> list[Task]:
    """The tasks of a V2beta1Run in the order of ``names``; every named node that does work when there are none."""
    nodes = (run.run_details.task_details if run.run_details else None) or []
    if not names:
        started = sorted((node for node in nodes if not _PLUMBING.fullmatch(node.display_name or "")), key=_start)
        # The workflow itself is a node too, named after the run's children's ids.
        workflows = {child.rpartition("-")[0] for node in nodes for child in _children(node)}
        names = list(dict.fromkeys(node.display_name for node in started if node.display_name not in workflows))
    retried = {child for node in nodes if node.display_name == "executor" for child in _children(node)}
    return [_task(name, [node for node in nodes if node.display_name == name], retried) for name in names]


def pod_names(child: str, retried: Iterable[str]) -> list[str]:
    """Names of the pods of an executor node: of its attempts, the last first, if it was tried more than once."""
    attempts = _attempts(child, retried)
    return [
        name
        for node, template in [
            *((attempt, "retry-system-container-impl") for attempt in reversed(attempts)),
            (child, "system-container-impl"),
        ]
        for name in (f"{node.rpartition('-')[0]}-{template}-{node.rpartition('-')[2]}", node)
    ]


def attempt_id(node: str, number: int) -> str:
    """The id of attempt ``number`` of the node with this id: FNV-1a goes on from the value that is in the id."""
    workflow, _, value = node.rpartition("-")
    state = int(value)
    for byte in f"({number})".encode():
        state = ((state ^ byte) * _FNV_PRIME) & _WORD
    return f"{workflow}-{state}"


def _attempts(child: str, retried: Iterable[str]) -> list[str]:
    if not re.fullmatch(r".+-\d+", child):
        return []
    known = set(retried)
    found: list[str] = []
    while (attempt := attempt_id(child, len(found))) in known:
        found.append(attempt)
    return found


def _task(name: str, nodes: Sequence[Any], retried: set[str]) -> Task:
    if not nodes:
        return Task(name, WAITING)
    states = [_state(node.state) for node in nodes]
    state = next((known for known in _ORDER if known in states), states[0])
    failed = [child for node, its in zip(nodes, states, strict=True) if its == FAILED for child in _children(node)]
    tried = [len(_attempts(child, retried)) for node in nodes for child in _children(node)]
    ends = [_time(node.end_time) for node in nodes]
    return Task(
        name=name,
        state=state,
        started=min((time for node in nodes if (time := _time(node.start_time))), default=None),
        ended=None if None in ends or state in (RUNNING, WAITING) else max(time for time in ends if time),
        parts=len(nodes),
        parts_done=sum(its in ("succeeded", "skipped") for its in states),
        retries=sum(max(0, count - 1) for count in tried),
        pods=tuple(pod for child in failed for pod in pod_names(child, retried)),
    )


def _state(state: str | None) -> str:
    text = state or "RUNTIME_STATE_UNSPECIFIED"
    return _STATES.get(text, text.lower())


def _children(node: Any) -> list[str]:
    return [child.pod_name for child in node.child_tasks or [] if child.pod_name]


def _time(time: datetime | None) -> datetime | None:
    """What the server writes for "not yet" lies in year 1 or 1970."""
    return None if time is None or time.year <= 1970 else time


def _start(node: Any) -> datetime:
    return _time(node.start_time) or datetime.max.replace(tzinfo=UTC)
