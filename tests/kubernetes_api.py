"""A server that speaks as much of the Kubernetes API as a job's watcher asks for; what pods do is the test's part."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAMESPACE = "team"
JOBS = re.compile(rf"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs(?:/([^/]+))?")
PODS = re.compile(rf"/api/v1/namespaces/{NAMESPACE}/pods(?:/([^/]+)/log)?")


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"


@dataclass
class Pod:
    """A pod of a job and its log; ``state`` is the container's, as the API has it."""

    name: str
    uid: str
    labels: dict[str, str]
    created: str
    state: dict[str, Any] = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    phase: str = "Pending"
    conditions: list[dict[str, str]] = field(default_factory=list)
    lines: list[tuple[float, str]] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return "running" in self.state

    def manifest(self) -> dict[str, Any]:
        metadata = {"name": self.name, "uid": self.uid, "labels": self.labels, "creationTimestamp": self.created}
        node = {"name": "node", "image": "i", "imageID": "", "ready": self.running, "restartCount": 0}
        status = {
            "phase": self.phase,
            "conditions": self.conditions,
            "containerStatuses": [node | {"state": self.state}],
        }
        spec = {"containers": [{"name": "node", "image": "i"}]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


@dataclass
class Refusal:
    """What the server answers to requests of a method whose path matches, so many times."""

    method: str
    path: str
    status: int
    body: str
    times: int = 10**9


class SmallApi:
    """The objects of one namespace. Methods are for the test; the server asks the rest."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[Pod] = []
        self.refusals: list[Refusal] = []
        self.requests: list[tuple[str, str, str]] = []
        self.on_create: Callable[[dict[str, Any]], None] = lambda job: None
        self.on_delete: Callable[[str], None] = lambda name: None
        self.changed = threading.Condition()
        self._count = 0

    def asked(self, method: str, path: str = "trainjobs") -> int:
        """How many requests of that kind came."""
        return sum(one == method and path in where for one, where, _ in self.requests)

    def start_pod(self, job: str, node: int, running: bool = True) -> Pod:
        with self.changed:
            self._count += 1
            labels = {
                "jobset.sigs.k8s.io/jobset-name": job,
                "jobset.sigs.k8s.io/replicatedjob-name": "node",
                "batch.kubernetes.io/job-completion-index": str(node),
            }
            pod = Pod(f"{job}-node-0-{node}-{self._count:05d}", f"uid-{self._count}", labels, now())
            self.pods.append(pod)
        if running:
            self.run(pod)
        return pod

    def run(self, pod: Pod) -> None:
        with self.changed:
            pod.phase, pod.state = "Running", {"running": {"startedAt": now()}}

    def say(self, pod: Pod, *lines: str) -> None:
        with self.changed:
            pod.lines.extend((time.time(), f"{now()} {line}") for line in lines)
            self.changed.notify_all()

    def end(self, pod: Pod, exit_code: int, reason: str = "") -> None:
        with self.changed:
            pod.phase = "Failed" if exit_code else "Succeeded"
            said = reason or ("Error" if exit_code else "Completed")
            ended = {"exitCode": exit_code, "reason": said, "finishedAt": now(), "startedAt": now()}
            pod.state = {"terminated": ended}
            self.changed.notify_all()

    def condition(self, job: str, kind: str, message: str = "", true: bool = True) -> None:
        with self.changed:
            conditions = self.jobs[job].setdefault("status", {}).setdefault("conditions", [])
            conditions[:] = [one for one in conditions if one["type"] != kind]
            status = "True" if true else "False"
            conditions.append({"type": kind, "status": status, "message": message, "reason": kind})

    def add(self, job: dict[str, Any]) -> dict[str, Any]:
        """What creating does."""
        job["metadata"] |= {"uid": f"job-{len(self.requests)}", "creationTimestamp": now(), "namespace": NAMESPACE}
        self.jobs[job["metadata"]["name"]] = job
        return job


def status(code: int, message: str, reason: str = "") -> str:
    """An error as the API writes it."""
    return json.dumps({"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": reason})


def missing(name: str) -> str:
    return status(404, f'trainjobs.trainer.kubeflow.org "{name}" not found', "NotFound")


class Handler(BaseHTTPRequestHandler):
    """Answers for ``api``, which the server's class carries."""

    protocol_version = "HTTP/1.1"
    api: SmallApi

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.api.requests.append((method, self.path, self.headers.get("Content-Type", "")))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        for refusal in self.api.refusals:
            if refusal.times and refusal.method == method and re.search(refusal.path, url.path):
                refusal.times -= 1
                self._send(refusal.status, refusal.body)
                return
        if found := JOBS.fullmatch(url.path):
            self._job(method, found[1], query, json.loads(body) if body else {})
        elif found := PODS.fullmatch(url.path):
            self._log(found[1], query) if found[1] else self._pods(query)
        else:
            self._send(404, "404 page not found")

    def _job(self, method: str, name: str | None, query: dict[str, str], body: dict[str, Any]) -> None:
        api = self.api
        if method == "POST":
            name = body["metadata"]["name"]
            if name in api.jobs:
                self._send(409, status(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists', "AlreadyExists"))
                return
            self._send(201, json.dumps(api.add(body)))
            api.on_create(body)
        elif name is None:
            wanted = _selector(query)
            items = [one for one in api.jobs.values() if wanted.items() <= one["metadata"].get("labels", {}).items()]
            self._send(200, json.dumps({"items": items}))
        elif name not in api.jobs:
            self._send(404, missing(name))
        elif method == "PATCH":
            api.jobs[name]["metadata"] |= body["metadata"]
            self._send(200, json.dumps(api.jobs[name]))
        elif method == "DELETE":
            self._send(200, json.dumps(api.jobs.pop(name)))
            api.on_delete(name)
        else:
            self._send(200, json.dumps(api.jobs[name]))

    def _pods(self, query: dict[str, str]) -> None:
        wanted = _selector(query)
        items = [pod.manifest() for pod in self.api.pods if wanted.items() <= pod.labels.items()]
        self._send(200, json.dumps({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}))

    def _log(self, name: str, query: dict[str, str]) -> None:
        pod = next(one for one in self.api.pods if one.name == name)
        if "waiting" in pod.state:
            self._send(400, status(400, f'container "node" in pod "{name}" is waiting to start'))
            return
        since = time.time() - float(query.get("sinceSeconds", 10**9))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = max(0, len(pod.lines) - int(query["tailLines"])) if "tailLines" in query else 0
        while True:
            with self.api.changed:
                fresh, over = pod.lines[sent:], not pod.running or query.get("follow") != "true"
                if not fresh and not over:
                    self.api.changed.wait(0.2)
            sent += len(fresh)
            try:
                for _, text in (line for line in fresh if line[0] >= since):
                    self._chunk(f"{text}\n".encode())
                if over:
                    self._chunk(b"")
                    return
            except OSError:  # the reader is gone
                return

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, code: int, body: str) -> None:
        data = body.encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json" if body.startswith("{") else "text/plain")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _selector(query: dict[str, str]) -> dict[str, str]:
    return dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)


@contextmanager
def small_api() -> Iterator[tuple[SmallApi, str]]:
    """A running server and its URL."""
    api = SmallApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"api": api}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield api, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def write_kubeconfig(path: Path, url: str) -> Path:
    """What KUBECONFIG names for a process of its own."""
    cluster = {"name": "c", "cluster": {"server": url}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}
    user = {"name": "u", "user": {"token": "t"}}
    config = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "x"}
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config"} | config))
    return path
