"""A job from beginning to end: created or found again, followed, and deleted when the wait for it is cancelled."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from latentflow.cluster.api import Cluster, JobState, NodePod, PassingError, TakenError
from latentflow.cluster.logs import RankZeroLog, tail
from latentflow.cluster.trainjob import FINGERPRINT_LABEL, JobPlan, owner_reference, trainjob
from latentflow.errors import LatentflowError

if TYPE_CHECKING:
    from kubeflow_trainer_api import models

EXIT_CANCELLED = 143
LONGEST_PAUSE = 60.0
log = logging.getLogger(__name__)
T = TypeVar("T")


class CancelledError(SystemExit):
    """SIGTERM ended the wait, and the job was deleted (128 + 15, as a shell has it)."""

    def __init__(self) -> None:
        super().__init__(EXIT_CANCELLED)


class Launch:
    """One job of a cluster and the wait for it, which has no deadline."""

    def __init__(self, cluster: Cluster, plan: JobPlan, poll_seconds: float = 10.0) -> None:
        self._cluster = cluster
        self._plan = plan
        self._poll = poll_seconds
        self._log = RankZeroLog(cluster)
        self._told = ""
        self._cancelled = False

    def __str__(self) -> str:
        return f"TrainJob {self._cluster.namespace}/{self._plan.name}"

    def run(self, is_done: Callable[[], bool]) -> None:
        """Returns when the job, or another one of the same work, is complete; ``is_done`` says whether it is needed.

        A job of this name that still runs is adopted; one that failed makes room for a new one. Raises
        LatentflowError with the last lines of the log when the job fails, and CancelledError, after it has deleted
        the job, on SIGTERM. Any other error leaves the job running, for a retry to adopt.
        """
        job = trainjob(self._plan)
        with self._cancellable():
            try:
                if self._obtain(job, is_done):
                    self._follow()
            except (CancelledError, KeyboardInterrupt):
                self._cancel()
                raise

    def _obtain(self, job: "models.TrainerV1alpha1TrainJob", is_done: Callable[[], bool]) -> bool:
        """Sees to it that there is a job; False where its work turns out to be done."""
        while True:
            state = self._ask(lambda: self._cluster.job(self._plan.name))
            if state is None:
                if is_done():
                    return False
                if self._nobody_else() and self._create(job):
                    return True
            elif state.failed is not None and not state.leaving:
                log.info("%s failed before (%s); it is deleted and started again", self, state.failed)
                self._ask(lambda: self._cluster.delete(self._plan.name))
            elif not state.leaving:
                self._adopt()
                return True
            self._pause(self._poll)

    def _create(self, job: "models.TrainerV1alpha1TrainJob") -> bool:
        try:
            self._ask(lambda: self._cluster.create(job.to_dict()))
        except TakenError:
            return False
        nodes, options = self._plan.nodes, self._plan.options
        log.info("%s created: %d node(s) of %d process(es)", self, nodes, self._plan.processes_per_node)
        if options.queue:
            log.info("Kueue starts it when there is room in queue %s", options.queue)
        return True

    def _adopt(self) -> None:
        log.info("%s is there already; it is followed, no second one is started", self)
        if owner := self._plan.owner:
            try:
                self._ask(lambda: self._cluster.own(self._plan.name, owner_reference(owner).to_dict()))
            except LatentflowError as error:
                log.warning("the job does not go with this pod: %s", error)

    def _nobody_else(self) -> bool:
        """Whether no other job does the same work, which would write to the same places."""
        found = self._ask(lambda: self._cluster.jobs(FINGERPRINT_LABEL, self._plan.fingerprint[:32]))
        others = [one.name for one in found if not one.over and one.name != self._plan.name]
        if others:
            self._tell(f"TrainJob {others[0]} of another run trains the same; waiting for it")
        return not others

    def _follow(self) -> None:
        while True:
            state = self._ask(lambda: self._cluster.job(self._plan.name))
            if state is None:
                raise LatentflowError(f"{self} was deleted by somebody else; run the step again to go on.")
            pods = self._ask(lambda: self._cluster.pods(self._plan.name))
            zero = next((pod for pod in pods if pod.node == 0), None)
            if zero and zero.started and self._log.began_anew(zero):
                log.info("rank 0 begins again, in pod %s", zero.name)
            if state.over:
                break
            self._tell(_describe(state, pods, self._plan.nodes))
            if zero and zero.started:
                self._pass_on(self._poll, follow=True)
            if not zero or not zero.started or zero.exit_code is not None:
                self._pause(self._poll)
        if zero and zero.started:
            self._pass_on(0, follow=False)
        if state.failed is not None:
            raise LatentflowError(self._failure(state.failed, pods))
        log.info("%s is complete", self)

    def _pass_on(self, seconds: float, follow: bool) -> None:
        """Logs what rank 0 logged; a log that cannot be read is warned of and ends nothing."""
        try:
            for line in self._log.lines(seconds, follow):
                log.info("%s", line)
                self._look()
        except PassingError:
            self._pause(self._poll)
        except LatentflowError as error:
            self._tell(f"the log of rank 0 cannot be read now: {error}")
            self._pause(self._poll)

    def _failure(self, reason: str, pods: list[NodePod]) -> str:
        """Why the job failed: its own reason, and the pod that ended first with its last lines."""
        words = f"{self} failed: {reason.rstrip('.')}."
        broken = [pod for pod in pods if pod.exit_code]
        lines = list(self._log.last)
        if broken:
            first = min(broken, key=lambda pod: (pod.finished is None, pod.finished, pod.node))
            why = f" ({first.ended})" if first.ended not in ("", "Error") else ""
            words += f" Node {first.node} (pod {first.name}) ended with exit code {first.exit_code}{why}."
            try:
                lines = tail(self._cluster, first) or lines
            except (PassingError, LatentflowError) as error:
                log.warning("the log of %s cannot be read: %s", first.name, error)
        said = "".join(f"\n  | {line}" for line in lines)
        return f"{words} A retry goes on from the last checkpoint.{' Its last lines:' if said else ''}{said}"

    def _cancel(self) -> None:
        for _ in range(3):
            try:
                self._cluster.delete(self._plan.name)
            except PassingError as error:
                log.warning("deleting %s: %s", self, error)
                time.sleep(1)
            except LatentflowError as error:
                log.error("%s", error)
                break
            else:
                log.info("cancelled: %s is deleted", self)
                return
        log.error("%s still runs: kubectl -n %s delete trainjob %s", self, self._cluster.namespace, self._plan.name)

    def _ask(self, question: Callable[[], T]) -> T:
        """The API's answer, however long it does not answer."""
        pause = self._poll
        while True:
            self._look()
            try:
                return question()
            except PassingError as error:
                log.warning("the cluster's API does not answer (%s); asking again in %.0f s", error, pause)
            self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _tell(self, words: str) -> None:
        """Logs what is not what was logged last."""
        if words and words != self._told:
            log.info("%s", words)
            self._told = words

    def _pause(self, seconds: float) -> None:
        self._look()
        time.sleep(seconds)

    def _look(self) -> None:
        if self._cancelled:
            raise CancelledError

    @contextmanager
    def _cancellable(self) -> Iterator[None]:
        """Inside, the first SIGTERM raises CancelledError wherever the wait is; others have no effect."""

        def cancel(_signum: int, _frame: FrameType | None) -> None:
            if not self._cancelled:
                self._cancelled = True
                raise CancelledError

        try:
            before = signal.signal(signal.SIGTERM, cancel)
        except ValueError:  # Not the main thread: signals are not ours to handle.
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _describe(state: JobState, pods: list[NodePod], nodes: int) -> str:
    """Where a job stands that is not over, in a line."""
    if state.suspended is not None:
        return f"the job is suspended: {state.suspended}"
    running = sum(pod.phase == "Running" for pod in pods)
    waiting = [f"{pod.name}: {pod.waiting}" for pod in pods if pod.waiting]
    ended = [f"{pod.name} ended with exit code {pod.exit_code}" for pod in pods if pod.exit_code]
    return "; ".join([f"{running} of {nodes} pods run", *waiting[:1], *ended[:1]])
