"""SIGTERM, as a pod gets it before it is taken away: a checkpoint first, then an exit code of its own."""

import signal
import time
from types import FrameType, TracebackType

from latentflow.errors import EXIT_PREEMPTED

SAME_SECONDS = 5.0


class PreemptedError(SystemExit):
    """The training was asked to end and has left a checkpoint; ``step`` is how far it came."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.step = step


class Interrupted(Exception):  # noqa: N818  not an error: work that can be done again is left
    """Raised by `Termination.look` in the middle of work that changes nothing and can be repeated."""


class Termination:
    """Inside, SIGTERM only sets ``asked``, for which the loop looks after every step; one more, later, ends at once.

    A launcher may pass on a signal that its processes get as well: what comes within seconds is the same one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._before: object = None

    def __enter__(self) -> "Termination":
        try:
            self._before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # Not the main thread: signals are not ours to handle.
            self._before = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

    def look(self) -> None:
        """Raises Interrupted if the end was asked for."""
        if self.asked:
            raise Interrupted

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._since > SAME_SECONDS:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self._since = self._since or time.monotonic()
        self.asked = True
