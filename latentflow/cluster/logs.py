"""Rank 0's log, line by line, each line once, across connections that break and pods that are replaced."""

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentflow.cluster.api import Cluster, NodePod

if TYPE_CHECKING:
    from urllib3 import HTTPResponse

REMEMBERED = 20
# What is asked for again at a new connection; lines that were seen are known by their time.
OVERLAP_SECONDS = 10


class RankZeroLog:
    """Reads the log of the pod that runs rank 0, whichever it is; ``last`` are its last lines."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pod: NodePod | None = None
        self._seen = ""
        self._heard = 0.0
        self.last: deque[str] = deque(maxlen=REMEMBERED)

    def began_anew(self, pod: NodePod) -> bool:
        """Turns to ``pod``; whether another one ran rank 0 before."""
        before, self._pod = self._pod, pod
        if before is None or before.uid == pod.uid:
            return False
        self._seen = ""
        return True

    def lines(self, seconds: float, follow: bool = True) -> Iterator[str]:
        """New lines, for about ``seconds`` if it follows, and to the end if not."""
        from urllib3.exceptions import HTTPError

        assert self._pod
        end = time.monotonic() + seconds
        since = int(time.monotonic() - self._heard) + OVERLAP_SECONDS if self._seen else None
        response = self._cluster.log(self._pod.name, follow, since)
        try:
            for line in _lines(response):
                stamp, _, text = line.partition(" ")
                if stamp > self._seen:
                    self._seen, self._heard = stamp, time.monotonic()
                    self.last.append(text)
                    yield text
                if follow and time.monotonic() > end:
                    return
        except HTTPError:
            # Silence for a while, or a broken connection: the next call asks for what came since.
            return
        finally:
            response.close()


def tail(cluster: Cluster, pod: NodePod) -> list[str]:
    """The last lines of a pod's log."""
    response = cluster.log(pod.name, follow=False, tail=REMEMBERED)
    try:
        return [line.partition(" ")[2] for line in _lines(response)]
    finally:
        response.close()


def _lines(response: "HTTPResponse") -> Iterator[str]:
    """Lines as they come; what follows the last line break is one too."""
    rest = b""
    for chunk in response.stream(2**16, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace").rstrip("\r") for line in whole)
    if rest:
        yield rest.decode(errors="replace")
