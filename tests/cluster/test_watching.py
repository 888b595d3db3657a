"""The wait for a job, with the real client against a server that speaks the Kubernetes API."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from kubernetes_api import NAMESPACE, Pod, Refusal, SmallApi, missing, small_api, status, write_kubeconfig

pytest.importorskip("kubeflow.trainer", reason="Kubeflow's SDK is not installed (extra distributed)")

from latentflow.cluster.api import Cluster
from latentflow.cluster.options import JobOptions
from latentflow.cluster.trainjob import FINGERPRINT_LABEL, JobPlan, Owner, Work, trainjob
from latentflow.cluster.watching import EXIT_CANCELLED, Launch
from latentflow.errors import LatentflowError
from latentflow.params import TrainInputs, for_step, load

NAME = "latentflow-abc-run"
INPUTS = for_step(load(Path(__file__).parents[2] / "params.yaml"), "train")
assert isinstance(INPUTS, TrainInputs)
WORK = Work(INPUTS, "s3://b/encoded", (), "s3://b/vae", "s3://b", "s3://b/models/m")
PLAN = JobPlan(NAME, WORK, "image", 2, 1, JobOptions(), fingerprint="f" * 64, owner=Owner("step-pod", "uid-of-step"))


@pytest.fixture
def served() -> Iterator[tuple[SmallApi, str]]:
    with small_api() as (api, url):
        yield api, url


@pytest.fixture
def api(served: tuple[SmallApi, str]) -> SmallApi:
    return served[0]


@pytest.fixture
def cluster(served: tuple[SmallApi, str]) -> Cluster:
    from kubernetes.client import ApiClient, Configuration

    return Cluster(ApiClient(Configuration(host=served[1])), NAMESPACE, read_seconds=0.5)


def launched(cluster: Cluster, plan: JobPlan = PLAN, is_done: Callable[[], bool] = lambda: False) -> None:
    Launch(cluster, plan, poll_seconds=0.05).run(is_done)


def behind(work: Callable[[], None]) -> Callable[[object], None]:
    """What the cluster does once the job is there."""
    return lambda _job: threading.Thread(target=work, daemon=True).start()


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


def succeed(api: SmallApi) -> None:
    pods = [api.start_pod(NAME, node) for node in range(2)]
    api.say(pods[0], "step 1", "step 2")
    api.say(pods[1], "of another rank")
    for pod in pods:
        api.end(pod, 0)
    api.condition(NAME, "Complete", "jobset completed")


def test_a_job_is_created_followed_and_left_when_it_is_complete(
    api: SmallApi, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    api.on_create = behind(lambda: succeed(api))
    with caplog.at_level(logging.INFO):
        launched(cluster)
    assert caplog.messages.count("step 1") == caplog.messages.count("step 2") == 1
    assert "of another rank" not in caplog.messages
    assert caplog.messages[-1] == f"TrainJob team/{NAME} is complete"
    (owner,) = api.jobs[NAME]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Pod", "step-pod", "uid-of-step")
    assert api.asked("DELETE") == 0


def test_lines_come_while_the_job_runs_and_once_though_connections_break(
    api: SmallApi, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        pod = api.start_pod(NAME, 0)
        for step in range(4):
            api.say(pod, f"step {step}")
            # The reader waits half a second for a line, then asks again.
            until(lambda step=step: f"step {step}" in caplog.messages)
            before = api.asked("GET", "/log")
            until(lambda before=before: api.asked("GET", "/log") > before)
        api.end(pod, 0)
        api.condition(NAME, "Complete")

    api.on_create = behind(work)
    with caplog.at_level(logging.INFO):
        launched(cluster)
    assert [line for line in caplog.messages if line.startswith("step")] == [f"step {step}" for step in range(4)]
    assert "sinceSeconds=" in [path for _, path, _ in api.requests if "/log" in path][-1]


def test_a_failed_job_tells_the_pod_that_ended_first_its_code_and_last_lines(api: SmallApi, cluster: Cluster) -> None:
    def work() -> None:
        pods = [api.start_pod(NAME, node) for node in range(2)]
        api.say(pods[0], "rank 0 waits for rank 1")
        api.say(pods[1], *(f"line {number}" for number in range(40)), "CUDA out of memory")
        api.end(pods[1], 137, "OOMKilled")
        api.end(pods[0], 1)
        api.condition(NAME, "Failed", "jobset failed due to one or more job failures.")

    api.on_create = behind(work)
    with pytest.raises(LatentflowError) as raised:
        launched(cluster)
    words = str(raised.value)
    assert f"TrainJob team/{NAME} failed: jobset failed due to one or more job failures." in words
    assert "Node 1 (pod latentflow-abc-run-node-0-1-00002) ended with exit code 137 (OOMKilled)." in words
    assert "A retry goes on from the last checkpoint." in words
    assert words.endswith("line 39\n  | CUDA out of memory")
    assert "line 20\n" not in words
    assert NAME in api.jobs


def test_a_failed_job_without_pods_tells_what_rank_0_said_last(api: SmallApi, cluster: Cluster) -> None:
    def work() -> None:
        pod = api.start_pod(NAME, 0)
        api.say(pod, "the last words")
        until(lambda: api.asked("GET", "/log") > 0)
        until(lambda: api.asked("GET", NAME) > 3)
        api.pods.clear()
        api.condition(NAME, "Failed", "DeadlineExceeded")

    api.on_create = behind(work)
    with pytest.raises(LatentflowError, match=r"(?s)failed: DeadlineExceeded\..*the last words"):
        launched(cluster)


def test_pods_that_the_job_starts_again_are_followed(
    api: SmallApi, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        first = api.start_pod(NAME, 0)
        api.say(first, "step 1", "preempted")
        until(lambda: "preempted" in caplog.messages)
        api.end(first, 75)
        until(lambda: any("ended with exit code 75" in line for line in caplog.messages))
        second = api.start_pod(NAME, 0, running=False)
        second.conditions.append(
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
        )
        second.state = {}
        until(lambda: any("Unschedulable no GPU" in line for line in caplog.messages))
        api.run(second)
        api.say(second, "going on from step 1", "step 2")
        api.end(second, 0)
        api.condition(NAME, "Complete")

    api.on_create = behind(work)
    with caplog.at_level(logging.INFO):
        launched(cluster)
    assert "rank 0 begins again, in pod latentflow-abc-run-node-0-0-00002" in caplog.messages
    steps = [line for line in caplog.messages if line.startswith(("step", "going"))]
    assert steps == ["step 1", "going on from step 1", "step 2"]


def test_a_running_job_of_the_name_is_adopted_by_a_retry(
    api: SmallApi, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    api.add(trainjob(replace(PLAN, owner=Owner("earlier", "uid-of-earlier"))).to_dict())
    threading.Thread(target=lambda: succeed(api), daemon=True).start()
    with caplog.at_level(logging.INFO):
        launched(cluster)
    assert api.asked("POST") == 0
    assert "step 2" in caplog.messages
    assert api.jobs[NAME]["metadata"]["ownerReferences"][0]["uid"] == "uid-of-step"
    assert [kind for method, _, kind in api.requests if method == "PATCH"] == ["application/merge-patch+json"]


def test_a_job_that_ended_while_nobody_waited_is_complete(api: SmallApi, cluster: Cluster) -> None:
    api.add(trainjob(PLAN).to_dict())
    api.condition(NAME, "Complete")
    launched(cluster)
    assert api.asked("POST") == 0


def test_a_failed_job_of_the_name_makes_room(api: SmallApi, cluster: Cluster) -> None:
    api.add(trainjob(PLAN).to_dict())
    api.condition(NAME, "Failed", "too many restarts")
    api.on_create = behind(lambda: succeed(api))
    launched(cluster)
    assert (api.asked("DELETE"), api.asked("POST")) == (1, 1)


def test_another_run_that_trains_the_same_is_waited_for(
    api: SmallApi, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    api.add(trainjob(replace(PLAN, name="of-another-run")).to_dict())
    done = threading.Event()

    def end() -> None:
        until(lambda: any("of-another-run of another run trains the same" in line for line in caplog.messages))
        done.set()
        api.condition("of-another-run", "Complete")

    threading.Thread(target=end, daemon=True).start()
    with caplog.at_level(logging.INFO):
        launched(cluster, is_done=done.is_set)
    assert api.asked("POST") == 0
    assert NAME not in api.jobs


def test_a_suspended_job_says_that_it_waits(api: SmallApi, cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        api.condition(NAME, "Suspended", "the queue is full")
        until(lambda: "the job is suspended: the queue is full" in caplog.messages)
        api.condition(NAME, "Suspended", "", true=False)
        succeed(api)

    api.on_create = behind(work)
    with caplog.at_level(logging.INFO):
        launched(cluster, replace(PLAN, options=JobOptions(queue="gpus")))
    assert "Kueue starts it when there is room in queue gpus" in caplog.messages
    assert caplog.messages.count("the job is suspended: the queue is full") == 1


def test_an_api_that_does_not_answer_is_asked_again(
    api: SmallApi, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    api.refusals += [
        Refusal("POST", "trainjobs", 503, status(503, "etcdserver: leader changed"), times=1),
        Refusal("GET", "pods$", 429, status(429, "too many requests"), times=1),
        Refusal("GET", "/log", 500, "", times=1),
    ]
    api.on_create = behind(lambda: succeed(api))
    launched(cluster)
    assert "etcdserver: leader changed" in caplog.text
    assert "too many requests" in caplog.text


def test_a_job_that_somebody_deletes_is_told(api: SmallApi, cluster: Cluster) -> None:
    api.on_create = behind(lambda: api.jobs.clear())
    with pytest.raises(LatentflowError, match="was deleted by somebody else; run the step again"):
        launched(cluster)


def test_a_log_that_may_not_be_read_ends_nothing(
    api: SmallApi, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    api.refusals.append(Refusal("GET", "/log", 403, status(403, 'cannot get resource "pods/log"', "Forbidden")))
    api.on_create = behind(lambda: succeed(api))
    with caplog.at_level(logging.INFO):
        launched(cluster)
    assert "may not get pods/log in namespace team; docs/distributed.md has the Role" in caplog.text


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (Refusal("GET", "trainjobs", 404, "404 page not found"), "install Kubeflow Trainer 2.2 or newer"),
        (
            Refusal("POST", "trainjobs", 403, status(403, 'cannot create resource "trainjobs"', "Forbidden")),
            "The service account may not create trainjobs in namespace team; docs/distributed.md has the Role",
        ),
        (
            Refusal("POST", "trainjobs", 403, status(403, 'admission webhook "v" denied the request: no runtime')),
            "The cluster refused to create trainjobs in namespace team: admission webhook .* no runtime",
        ),
        (
            Refusal("GET", "pods$", 403, status(403, 'cannot list resource "pods"', "Forbidden")),
            "may not list pods in namespace team",
        ),
        (
            Refusal("POST", "trainjobs", 404, status(404, 'namespaces "team" not found')),
            'refused to create trainjobs in namespace team: namespaces "team" not found',
        ),
    ],
)
def test_what_the_cluster_refuses_is_told_with_what_to_do(
    api: SmallApi, cluster: Cluster, refusal: Refusal, words: str
) -> None:
    api.refusals.append(refusal)
    with pytest.raises(LatentflowError, match=words):
        launched(cluster)


def test_deleting_what_is_gone_is_no_error(api: SmallApi, cluster: Cluster) -> None:
    cluster.delete(NAME)
    api.refusals.append(Refusal("DELETE", "trainjobs", 404, missing(NAME)))
    cluster.delete(NAME)


WAITER = """
import logging, sys
sys.path.insert(0, sys.argv[1])
from test_watching import PLAN
from latentflow.cluster.api import connect
from latentflow.cluster.watching import Launch
logging.basicConfig(level=logging.INFO)
Launch(connect(), PLAN, poll_seconds=0.1).run(lambda: False)
"""


@pytest.mark.parametrize("when", ["created", "following"])
def test_sigterm_deletes_the_job(served: tuple[SmallApi, str], when: str, tmp_path: Path) -> None:
    api, url = served
    pods: list[Pod] = []
    created = threading.Event()
    api.on_create = lambda job: created.set()
    environment = os.environ | {"KUBECONFIG": str(write_kubeconfig(tmp_path / "config", url))}
    tests = Path(__file__).parents[1]
    environment["PYTHONPATH"] = os.pathsep.join((str(tests), environment.get("PYTHONPATH", str(tests.parent))))
    process = subprocess.Popen(
        [sys.executable, "-c", WAITER, str(Path(__file__).parent)], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not created.wait(0.1):
        assert process.poll() is None, process.communicate()[1]
    if when == "following":
        pods.append(api.start_pod(NAME, 0))
        api.say(pods[0], "step 1")
        until(lambda: api.asked("GET", "/log") > 0)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == EXIT_CANCELLED, said
    assert f"cancelled: TrainJob team/{NAME} is deleted" in said
    assert api.jobs == {}


def test_a_job_that_cannot_be_deleted_is_named(
    api: SmallApi, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    api.refusals.append(Refusal("DELETE", "trainjobs", 403, status(403, "no", "Forbidden")))
    api.on_create = behind(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as raised:
        launched(cluster)
    assert raised.value.code == EXIT_CANCELLED
    assert f"still runs: kubectl -n team delete trainjob {NAME}" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_jobs_of_the_same_work_have_one_label() -> None:
    labels = trainjob(PLAN).to_dict()["metadata"]["labels"]
    assert labels[FINGERPRINT_LABEL] == "f" * 32


VERBS = {"POST": {"create"}, "GET": {"get", "list"}, "PATCH": {"patch"}, "DELETE": {"delete"}}


def test_the_role_of_the_docs_allows_what_is_asked(api: SmallApi, cluster: Cluster) -> None:
    blocks = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8").split("```")
    (text,) = [block.removeprefix("yaml") for block in blocks if "kind: Role\n" in block]
    role, _binding = yaml.safe_load_all(text)
    allowed = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    api.add(trainjob(PLAN).to_dict())
    api.condition(NAME, "Failed", "before")
    api.on_create = behind(lambda: succeed(api))
    launched(cluster)
    launched(cluster)
    asked = {
        (method, "pods/log" if "/log" in path else "pods" if "/pods" in path else "trainjobs")
        for method, path, _ in api.requests
    }
    assert {method for method, _ in asked} == set(VERBS)
    assert all(VERBS[method] & allowed[resource] for method, resource in asked)
