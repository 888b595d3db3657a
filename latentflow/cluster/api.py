"""The few calls to a cluster's API that a job needs; what the API refuses is told with what to do about it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from latentflow.cluster.trainjob import RUN_LABEL, require_sdk
from latentflow.errors import LatentflowError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, ApiException, V1Pod
    from urllib3 import HTTPResponse

RIGHTS = "docs/distributed.md has the Role (trainjobs: create, get, list, patch, delete; pods and pods/log: get, list)"
# Not the cluster's answer, or one that it may take back: 409 and the like are for the caller.
PASSING = {408, 425, 429, 500, 502, 503, 504}


class PassingError(Exception):
    """The API could not be reached, or asks to be asked again."""


class TakenError(Exception):
    """There is a job of that name."""


class MissingError(Exception):
    """There is no job of that name."""


@dataclass(frozen=True)
class Condition:
    """What a job says of itself: ``Suspended``, ``Complete`` or ``Failed``, and why."""

    kind: str
    true: bool
    message: str


@dataclass(frozen=True)
class JobState:
    """A TrainJob as the API has it."""

    name: str
    conditions: tuple[Condition, ...] = ()
    leaving: bool = False

    @property
    def complete(self) -> bool:
        return self._true("Complete") is not None

    @property
    def failed(self) -> str | None:
        """Why it failed, in the controller's words."""
        return self._true("Failed")

    @property
    def suspended(self) -> str | None:
        """Why it does not run yet, or no more."""
        return self._true("Suspended")

    @property
    def over(self) -> bool:
        return self.complete or self.failed is not None

    def _true(self, kind: str) -> str | None:
        return next((one.message for one in self.conditions if one.kind == kind and one.true), None)


@dataclass(frozen=True)
class NodePod:
    """The pod of one node of a job: ``waiting`` says why it does not run, ``exit_code`` how it ended."""

    name: str
    uid: str
    node: int
    created: datetime | None
    phase: str
    started: bool
    waiting: str = ""
    exit_code: int | None = None
    ended: str = ""
    finished: datetime | None = None


@dataclass(frozen=True)
class Cluster:
    """A namespace of a cluster, through one client."""

    client: "ApiClient"
    namespace: str
    read_seconds: float = 30.0

    def check(self) -> None:
        """Raises LatentflowError unless the cluster answers, knows TrainJobs and lets this process see them."""
        try:
            self.jobs(RUN_LABEL, "none")
        except PassingError as error:
            raise LatentflowError(f"The cluster's API does not answer: {error}.") from None

    def create(self, job: dict[str, Any]) -> None:
        """Raises TakenError where there is a job of that name."""
        with _told(self.namespace, "create"):
            self._jobs().create_namespaced_custom_object(*self._kind(), body=job)

    def job(self, name: str) -> JobState | None:
        """The job's state; None where there is none."""
        try:
            with _told(self.namespace, "get", job=name):
                return _state(self._jobs().get_namespaced_custom_object(*self._kind(), name=name))
        except MissingError:
            return None

    def jobs(self, label: str, value: str) -> list[JobState]:
        """All jobs with that label."""
        with _told(self.namespace, "list"):
            found = self._jobs().list_namespaced_custom_object(*self._kind(), label_selector=f"{label}={value}")
        return [_state(one) for one in found["items"]]

    def own(self, name: str, owner: dict[str, Any]) -> None:
        """Makes the job go with another pod than before."""
        with _told(self.namespace, "patch"):
            patch = {"metadata": {"ownerReferences": [owner]}}
            self._jobs().patch_namespaced_custom_object(*self._kind(), name=name, body=patch)

    def delete(self, name: str) -> None:
        """Deletes the job; its pods get SIGTERM. Nothing happens where there is none."""
        with suppress(MissingError), _told(self.namespace, "delete", job=name):
            self._jobs().delete_namespaced_custom_object(*self._kind(), name=name)

    def pods(self, job: str) -> list[NodePod]:
        """The newest pod of every node, by node."""
        from kubeflow.trainer.constants import constants
        from kubernetes.client import CoreV1Api

        selector = f"{constants.JOBSET_NAME_LABEL}={job},{constants.JOBSET_RJOB_NAME_LABEL}={constants.NODE}"
        with _told(self.namespace, "list", "pods"):
            found = CoreV1Api(self.client).list_namespaced_pod(self.namespace, label_selector=selector).items
        newest: dict[int, NodePod] = {}
        for pod in sorted((_pod(one) for one in found), key=lambda pod: (pod.created is not None, pod.created)):
            newest[pod.node] = pod
        return [newest[node] for node in sorted(newest)]

    def log(self, pod: str, follow: bool, since_seconds: int | None = None, tail: int | None = None) -> "HTTPResponse":
        """The log of a pod's training container, each line after its time; while ``follow`` it does not end.

        A line that does not come within ``read_seconds`` ends it with urllib3's ReadTimeoutError.
        """
        from kubeflow.trainer.constants import constants
        from kubernetes.client import CoreV1Api

        limits = {"since_seconds": since_seconds, "tail_lines": tail}
        with _told(self.namespace, "get", "pods/log"):
            return CoreV1Api(self.client).read_namespaced_pod_log(  # type: ignore[no-any-return]
                pod,
                self.namespace,
                container=constants.NODE,
                follow=follow,
                timestamps=True,
                _preload_content=False,
                _request_timeout=(10, self.read_seconds),
                **{name: value for name, value in limits.items() if value is not None},
            )

    def _jobs(self) -> Any:
        from kubernetes.client import CustomObjectsApi

        return CustomObjectsApi(self.client)

    def _kind(self) -> tuple[str, str, str, str]:
        from kubeflow.trainer.constants import constants

        return constants.GROUP, constants.VERSION, self.namespace, constants.TRAINJOB_PLURAL


def connect() -> Cluster:
    """The cluster in which this process runs, or the one that KUBECONFIG names."""
    require_sdk()
    from kubeflow.common.utils import get_default_target_namespace, is_running_in_k8s
    from kubernetes import config
    from kubernetes.client import ApiClient

    try:
        config.load_incluster_config() if is_running_in_k8s() else config.load_kube_config()
    except config.ConfigException as error:
        raise LatentflowError(f"No cluster can be reached: {error}. Run in a pod, or set KUBECONFIG.") from None
    return Cluster(ApiClient(), get_default_target_namespace().strip())


@contextmanager
def _told(namespace: str, verb: str, what: str = "trainjobs", job: str = "") -> Iterator[None]:
    """What goes wrong inside, as PassingError, TakenError, MissingError of ``job`` or a sentence for the user."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if error.status in PASSING:
            raise PassingError(f"{error.status} {_message(error)}") from None
        if error.status == 409 and verb == "create":
            raise TakenError from None
        # A cluster that does not know the kind says something else.
        if error.status == 404 and job and f'"{job}"' in _message(error):
            raise MissingError from None
        raise LatentflowError(_sentence(error, namespace, verb, what)) from None
    except HTTPError as error:
        raise PassingError(str(error)) from None


def _sentence(error: "ApiException", namespace: str, verb: str, what: str) -> str:
    said = _message(error)
    if error.status in (401, 403) and "admission webhook" not in said:
        return f"The service account may not {verb} {what} in namespace {namespace}; {RIGHTS}. ({said})"
    if error.status == 404 and what == "trainjobs" and "namespaces" not in said:
        return (
            "The cluster does not know trainer.kubeflow.org/v1alpha1 TrainJobs: install Kubeflow Trainer 2.2 or newer, "
            f"as docs/distributed.md says. ({said})"
        )
    return f"The cluster refused to {verb} {what} in namespace {namespace}: {said}"


def _message(error: "ApiException") -> str:
    """The API's own words."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.body or error.reason or error).strip()


def _state(job: dict[str, Any]) -> JobState:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return JobState(
        job["metadata"]["name"],
        tuple(Condition(one["type"], one["status"] == "True", one.get("message", "")) for one in conditions),
        leaving="deletionTimestamp" in job["metadata"],
    )


def _pod(pod: "V1Pod") -> NodePod:
    from kubeflow.trainer.constants import constants

    statuses = [one for one in pod.status.container_statuses or () if one.name == constants.NODE]
    state = statuses[0].state if statuses else None
    ended = state.terminated if state else None
    return NodePod(
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        node=int((pod.metadata.labels or {}).get(constants.JOB_INDEX_LABEL, 0)),
        created=pod.metadata.creation_timestamp,
        phase=pod.status.phase or "Pending",
        started=bool(ended or (state and state.running)),
        waiting=_waiting(pod, state),
        exit_code=ended.exit_code if ended else None,
        ended=(ended.reason or "") if ended else (pod.status.reason or ""),
        finished=ended.finished_at if ended else None,
    )


def _waiting(pod: "V1Pod", state: Any) -> str:
    """Why a pod does not run: its container's reason, or the scheduler's."""
    if state and state.waiting and state.waiting.reason:
        return f"{state.waiting.reason} {state.waiting.message or ''}".strip()
    unscheduled = [one for one in pod.status.conditions or () if one.type == "PodScheduled" and one.status == "False"]
    return f"{unscheduled[0].reason or ''} {unscheduled[0].message or ''}".strip() if unscheduled else ""
