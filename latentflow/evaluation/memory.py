"""By how much memory grows while something runs: the accelerator's own count, or the process's on a CPU."""

import re
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Watch:
    """A ``with`` block; ``grown`` is then the peak in bytes beyond what was held when it began.

    On a CPU that is the growth of the resident process (Linux), an estimate: memory that was freed before and is used
    again does not count. Elsewhere it is 0.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._before = 0
        self.grown = 0

    def __enter__(self) -> Self:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            _reset_peak()
            self._before = _resident("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = torch.cuda.max_memory_allocated() if self._cuda else _resident("VmHWM")
        self.grown = max(0, peak - self._before)


def _reset_peak() -> None:
    """Forgets the process's highest memory use so far (proc_pid_clear_refs(5)); a kernel may not allow it."""
    try:
        _RESET.write_text("5")
    except OSError:
        return


def _resident(name: str) -> int:
    """VmRSS or VmHWM in bytes, 0 where there is no /proc."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
