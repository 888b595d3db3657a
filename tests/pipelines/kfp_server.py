"""A server of Kubeflow Pipelines' v2beta1 API, its state in memory: what a backend checks, keeps and answers.

It takes uploads as multipart, parses packages into PipelineSpec and PlatformSpec, refuses arguments that the package
does not define, namespaces in a single-user installation and their absence in a multi-user one, and lists with filters.
A run's tasks are the nodes of an Argo workflow as a backend of KFP 2.17 reports them: drivers and executors included, a
node's children by Argo's ids, its own id left out.
"""

import json
import re
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

WORKFLOW = "latentflow-training-x7k2p"
NEVER = "0001-01-01T00:00:00Z"


def node_id(name: str) -> str:
    """The id that Argo gives to a node: FNV-1a, 32 bits, of its full name."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return f"{WORKFLOW}-{value}"


def task_nodes(
    task: str, state: str, start: int = 0, end: int | None = None, attempts: Sequence[str] = (), where: str = ""
) -> list[dict[str, Any]]:
    """The nodes of one component: its driver, its DAG, its executor, and the attempts of a task with retries."""
    name = f"{WORKFLOW}.root.{where}{task}"
    times = {"start_time": _clock(start), "end_time": NEVER if end is None else _clock(end)}

    def node(shown: str, its: str, children: Sequence[str] = ()) -> dict[str, Any]:
        pods = [{"pod_name": child} for child in children]
        return {"display_name": shown, "state": its, **times, "child_tasks": pods, "create_time": _clock(start)}

    tried = [f"{name}.executor({number})" for number in range(len(attempts))]
    return [
        node(f"{task}-driver", "SUCCEEDED", [node_id(name)]),
        node(task, state, [node_id(f"{name}.executor")]),
        node("executor", state, [node_id(attempt) for attempt in tried]),
        *(node(f"executor({number})", its) for number, its in enumerate(attempts)),
    ]


def workflow_nodes() -> list[dict[str, Any]]:
    """The nodes that are no task: the workflow and its root."""
    node = {"state": "RUNNING", "start_time": _clock(0), "end_time": NEVER}
    return [
        {**node, "display_name": WORKFLOW, "child_tasks": [{"pod_name": node_id(f"{WORKFLOW}.root-driver")}]},
        {**node, "display_name": "root-driver", "state": "SUCCEEDED"},
        {**node, "display_name": "root"},
    ]


def _clock(seconds: int) -> str:
    return f"2026-11-23T12:{seconds // 60:02}:{seconds % 60:02}Z"


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Frame:
    """What a run shows at one look."""

    state: str
    nodes: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Backend:
    """The installation: what it holds, what it was asked, and how it is to behave."""

    multi_user: bool = False
    token: str = ""
    forbidden: str = ""
    """The end of paths for which the token's account has no rights."""
    login_page: bool = False
    frames: list[Frame] = field(default_factory=lambda: [Frame("SUCCEEDED")])
    logs: dict[str, str] = field(default_factory=dict)
    """By pod, as the API server gives them."""
    ui_logs: dict[str, str] = field(default_factory=dict)
    """By pod, as the UI's server gives them."""
    plugins: dict[str, Any] = field(default_factory=dict)
    faults: list[int] = field(default_factory=list)
    """Statuses of the next answers to a look at a run, before it is shown."""
    on_look: Callable[[], None] = lambda: None
    requests: list[Request] = field(default_factory=list)
    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    packages: dict[str, bytes] = field(default_factory=dict)
    experiments: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    recurring: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0
    host: str = ""

    def answer(self, request: Request) -> Any:
        self.requests.append(request)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            raise RefusedError(401, "Request header error: there is no user identity header")
        if self.forbidden and request.path.endswith(self.forbidden):
            raise RefusedError(403, "User 'team-a' is not authorized with reason: no")
        for method, pattern, handle in (
            ("GET", r"healthz", self._healthz),
            ("GET", r"pipelines", self._list_pipelines),
            ("POST", r"pipelines", self._create_pipeline),
            ("POST", r"pipelines/upload_version", self._upload_version),
            ("GET", r"pipelines/([^/]+)/versions", self._list_versions),
            ("GET", r"pipelines/([^/]+)/versions/([^/]+)", self._get_version),
            ("GET", r"experiments", self._list_experiments),
            ("POST", r"experiments", self._create_experiment),
            ("POST", r"runs", self._create_run),
            ("GET", r"runs/([^/]+)", self._get_run),
            ("GET", r"recurringruns", self._list_recurring),
            ("POST", r"recurringruns", self._create_recurring),
        ):
            found = re.fullmatch(f"/apis/v2beta1/{pattern}", request.path)
            if found and request.method == method:
                return handle(request, *found.groups())
        if found := re.fullmatch(r"/apis/v1alpha1/runs/[^/]+/nodes/([^/]+)/log", request.path):
            if found[1] in self.logs:
                return self.logs[found[1]]
            raise RefusedError(500, f'error in opening log stream: pods "{found[1]}" not found')
        if request.path == "/k8s/pod/logs":
            # The UI's server has its start page for what it does not know.
            return self.ui_logs.get(request.query["podname"], "<!doctype html><title>Kubeflow Pipelines</title>")
        raise RefusedError(404, "Not Found")

    def _healthz(self, _: Request) -> Any:
        return {"multi_user": self.multi_user, "commit_sha": "unknown", "tag_name": "2.17.0"}

    def _list_pipelines(self, request: Request) -> Any:
        namespace = self._namespace(request.query.get("namespace", ""))
        mine = [item for item in self.pipelines if item.get("namespace", "") == namespace]
        return {"pipelines": _filtered(mine, request)} if mine else {}

    def _create_pipeline(self, request: Request) -> Any:
        made = request.json
        self._namespace(made.get("namespace", ""))
        made["pipeline_id"] = f"pipeline-{len(self.pipelines) + 1}"
        self.pipelines.append(made)
        return made

    def _upload_version(self, request: Request) -> Any:
        query = request.query
        if query["pipelineid"] not in [item["pipeline_id"] for item in self.pipelines]:
            raise RefusedError(404, f"Pipeline {query['pipelineid']} not found")
        names = [item["display_name"] for item in self.versions if item["pipeline_id"] == query["pipelineid"]]
        if query["name"] in names:
            raise RefusedError(409, f"The name {query['name']} already exist.")
        package = _uploaded(request)
        identity = f"version-{len(self.versions) + 1}"
        self.packages[identity] = package
        self.versions.append(
            {
                "pipeline_id": query["pipelineid"],
                "pipeline_version_id": identity,
                "display_name": query["name"],
                "description": query.get("description", ""),
                "pipeline_spec": _parsed(package),
            }
        )
        return self.versions[-1]

    def _list_versions(self, request: Request, pipeline: str) -> Any:
        mine = [item for item in self.versions if item["pipeline_id"] == pipeline]
        return {"pipeline_versions": _filtered(mine, request)} if mine else {}

    def _get_version(self, _: Request, pipeline: str, version: str) -> Any:
        return _one(self.versions, pipeline_id=pipeline, pipeline_version_id=version)

    def _list_experiments(self, request: Request) -> Any:
        namespace = self._namespace(request.query.get("namespace", ""))
        mine = [item for item in self.experiments if item.get("namespace", "") == namespace]
        return {"experiments": _filtered(mine, request)} if mine else {}

    def _create_experiment(self, request: Request) -> Any:
        made = request.json
        self._namespace(made.get("namespace", ""))
        made["experiment_id"] = f"experiment-{len(self.experiments) + 1}"
        self.experiments.append(made)
        return made

    def _create_run(self, request: Request) -> Any:
        made = self._checked(request.json)
        made |= {"run_id": f"run-{len(self.runs) + 1}", "state": "PENDING"}
        self.runs.append(made)
        return made

    def _get_run(self, _: Request, identity: str) -> Any:
        run = _one(self.runs, run_id=identity)
        self.on_look()
        if self.faults:
            status = self.faults.pop(0)
            raise RefusedError(status, "no healthy upstream" if status == 503 else "the token has expired")
        frame = self.frames[min(self.looks, len(self.frames) - 1)]
        self.looks += 1
        return {
            **run,
            "state": frame.state,
            "run_details": {"task_details": [*workflow_nodes(), *frame.nodes]},
            "plugins_output": self.plugins,
            "error": {"code": 9, "message": frame.error} if frame.error else None,
        }

    def _list_recurring(self, request: Request) -> Any:
        mine = [item for item in self.recurring if item["experiment_id"] == request.query["experiment_id"]]
        return {"recurringRuns": _filtered(mine, request)} if mine else {}

    def _create_recurring(self, request: Request) -> Any:
        made = self._checked(request.json)
        if cron := made["trigger"].get("cron_schedule"):
            if len(cron["cron"].split()) != 6:
                raise RefusedError(400, "Schedule cron is not a supported format")
        elif int(made["trigger"]["periodic_schedule"]["interval_second"]) < 1:
            raise RefusedError(400, "Found invalid period schedule interval")
        status = "ENABLED" if made["mode"] == "ENABLE" else "DISABLED"
        made |= {"recurring_run_id": f"recurring-{len(self.recurring) + 1}", "status": status}
        self.recurring.append(made)
        return made

    def _checked(self, made: dict[str, Any]) -> dict[str, Any]:
        """A run's body: its version is there, and its arguments are defined by it and of the defined types."""
        reference = made["pipeline_version_reference"]
        spec = _one(self.versions, **reference)["pipeline_spec"]
        defined = spec.get("pipeline_spec", spec)["root"]["inputDefinitions"]["parameters"]
        kinds = {"STRING": str, "BOOLEAN": bool, "NUMBER_DOUBLE": float, "NUMBER_INTEGER": int, "STRUCT": dict}
        for name, value in made.get("runtime_config", {}).get("parameters", {}).items():
            if name not in defined:
                raise RefusedError(400, f"parameter {name} is not an input of the pipeline")
            if type(value) is not kinds[defined[name]["parameterType"]]:
                raise RefusedError(400, f"parameter {name} is of another type")
        _one(self.experiments, experiment_id=made["experiment_id"])
        return made

    def _namespace(self, namespace: str) -> str:
        if self.multi_user and not namespace:
            raise RefusedError(400, "Invalid resource references: in multi-user mode a namespace is needed")
        if namespace and not self.multi_user:
            raise RefusedError(400, "In single-user mode, a request cannot have a namespace")
        return namespace


def _one(items: list[dict[str, Any]], **identity: str) -> dict[str, Any]:
    for item in items:
        if all(item[key] == value for key, value in identity.items()):
            return item
    raise RefusedError(404, f"{', '.join(identity.values())} not found")


def _filtered(items: list[dict[str, Any]], request: Request) -> list[dict[str, Any]]:
    predicates = json.loads(request.query.get("filter", "{}")).get("predicates", [])
    for predicate in predicates:
        assert predicate["operation"] == 1, "only EQUALS is known here"
    return [item for item in items if all(item[each["key"]] == each["stringValue"] for each in predicates)]


def _uploaded(request: Request) -> bytes:
    """The bytes of the multipart field ``uploadfile``."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    (part,) = message_from_bytes(head + request.body).get_payload()
    assert part.get_param("name", header="content-disposition") == "uploadfile"
    content: bytes = part.get_payload(decode=True)
    return content


def _parsed(package: bytes) -> dict[str, Any]:
    """A package as the API gives it back: parsed into both specs and written as JSON again."""
    try:
        pipeline, *platforms = yaml.safe_load_all(package)
        spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
        both = [json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec()) for platform in platforms]
    except (yaml.YAMLError, json_format.ParseError) as error:
        raise RefusedError(400, f"invalid package: {error}") from error
    told = json_format.MessageToDict(spec)
    return {"pipeline_spec": told, "platform_spec": json_format.MessageToDict(both[0])} if both else told


class _Quiet(ThreadingHTTPServer):
    """A client that hangs up, or trusts no certificate, is no fault of the server's."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Server:
    """A Backend behind HTTP, on a free port of this machine."""

    def __init__(self, backend: Backend, tls: ssl.SSLContext | None = None) -> None:
        self.http = _Quiet(("127.0.0.1", 0), _handler(backend))
        backend.host = f"{'https' if tls else 'http'}://127.0.0.1:{self.http.server_port}"
        if tls:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def _handler(backend: Backend) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, parts.path, dict(parse_qsl(parts.query)), headers, body)
            if backend.login_page:
                backend.requests.append(request)
                return self._write(200, "text/html", b"<!doctype html><title>Log in to Your Account</title>")
            try:
                answer = backend.answer(request)
            except RefusedError as error:
                told = {"error": str(error), "code": 2, "message": str(error), "details": []}
                return self._write(error.status, "application/json", json.dumps(told).encode())
            if isinstance(answer, str):
                return self._write(200, "text/plain", answer.encode())
            return self._write(200, "application/json", json.dumps(answer).encode())

        do_GET = do_POST = _serve

        def _write(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing on the tests' output."""

    return Handler
