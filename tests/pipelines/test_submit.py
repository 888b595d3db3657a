"""`latentflow submit` against a server that speaks Kubeflow Pipelines' API, through kfp's own client."""

import io
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_server import WORKFLOW, Backend, Frame, Server, node_id, task_nodes
from rich.console import Console
from small_pipeline import small

from latentflow.errors import LatentflowError, ParamsError
from pipelines import compile as compiling
from pipelines import configuration, submit
from pipelines.configuration import PROJECT
from pipelines.submission import arguments as sending_arguments
from pipelines.submission import connection as connecting
from pipelines.submission import packages, plan
from pipelines.submission.connection import Connection, CredentialsError, KubeflowError, UnavailableError
from pipelines.submission.following import TimedOutError, Watch
from pipelines.submission.plan import Images, Request
from pipelines.submission.schedule import Schedule

COMMIT = "4f200c8a1b2c3d4e5f60718293a4b5c6d7e8f901"
QUICK = Watch(poll=0.01, patience=5)
TOKEN = "eyJhbGciOi-secret"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of this machine; a clean checkout at a known commit."""
    for name in os.environ:
        if name.startswith(("KF_PIPELINES_", "MLFLOW_", "KUBE", "DOCKER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(connecting.kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(packages, "git_state", lambda _: {"git_commit": COMMIT, "git_dirty": "false"})
    monkeypatch.setitem(packages.PIPELINES, "small", lambda _: small)


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    with Server(made):
        yield made


def run(
    backend: Backend, request: Request, watch: Watch | None = None, dry_run: bool = False, **settings: Any
) -> tuple[int, str]:
    """Exit code and printed text of a submission."""
    out = io.StringIO()
    connection = Connection(host=backend.host, **settings)
    return submit.submit(request, connection, watch, dry_run, Console(file=out, width=200)), out.getvalue()


def sent(backend: Backend, method: str, path: str) -> list[Any]:
    return [each for each in backend.requests if each.method == method and each.path == f"/apis/v2beta1/{path}"]


def test_the_package_goes_up_and_its_run_is_made(backend: Backend) -> None:
    code, text = run(
        backend,
        Request(
            settings=["train.steps=2000", "train.learning_rate=1e-3", "train.beta2=0.9", "train.adapter.rank=4"],
            fields=["encode_parts=3", "force_rerun=2026"],
            run_name="mine",
            service_account="pipeline-runner",
        ),
    )
    assert code == 0
    assert backend.packages["version-1"].decode() == compiling.package()
    (pipeline,) = backend.pipelines
    assert pipeline["display_name"] == "latentflow-training"
    (version,) = backend.versions
    assert version["display_name"] == COMMIT[:12]
    assert f"commit {COMMIT}, package sha256:" in version["description"]
    (made,) = backend.runs
    assert made["pipeline_version_reference"] == {"pipeline_id": "pipeline-1", "pipeline_version_id": "version-1"}
    assert made["experiment_id"] == "experiment-1"
    assert made["service_account"] == "pipeline-runner"
    assert made["display_name"] == "mine"
    arguments = made["runtime_config"]["parameters"]
    assert arguments == {
        "train_steps": 2000,
        "train_learning_rate": 0.001,
        "encode_parts": 3,
        "force_rerun": "2026",
        "overrides": {"train.beta2": 0.9, "train.adapter.rank": 4},
    }
    assert {name: type(value) for name, value in arguments.items() if name != "overrides"} == {
        "train_steps": int,
        "train_learning_rate": float,
        "encode_parts": int,
        "force_rerun": str,
    }
    assert [each["display_name"] for each in backend.experiments] == ["latentflow"]
    assert f"{backend.host}/#/runs/details/run-1" in text
    assert "latentflow submit --attach run-1" in text


def test_a_version_is_uploaded_once_and_another_package_of_the_commit_beside_it(backend: Backend) -> None:
    small = Request(pipeline="small", experiment="mine")
    assert "uploaded)" in run(backend, small)[1]
    assert "as uploaded before" in run(backend, small)[1]
    assert len(backend.versions) == len(sent(backend, "POST", "pipelines/upload_version")) == 1
    assert len(backend.pipelines) == len(backend.experiments) == 1
    assert len(backend.runs) == 2
    # Somebody put another package under the commit's name, by hand.
    backend.versions[0]["description"] = "by hand"
    run(backend, small)
    run(backend, small)
    assert [version["display_name"] for version in backend.versions] == [
        COMMIT[:12],
        f"{COMMIT[:12]}-{packages.build('small').digest[:8]}",
    ]
    assert backend.runs[-1]["pipeline_version_reference"]["pipeline_version_id"] == "version-2"
    backend.versions[1]["description"] = "by hand"
    with pytest.raises(LatentflowError, match="hold other packages"):
        run(backend, small)


def test_changes_are_warned_of_and_named_in_the_version(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "git_state", lambda _: {"git_commit": COMMIT, "git_dirty": "true"})
    _, text = run(backend, Request(pipeline="small"))
    digest = packages.build("small").digest
    assert backend.versions[0]["display_name"] == f"{COMMIT[:12]}-dirty-{digest[:8]}"
    assert "changes that are not committed" in text


def test_without_cache_no_task_is_cached_at_any_depth(backend: Backend) -> None:
    run(backend, Request(pipeline="small", cache=False))
    assert re.fullmatch(f"{COMMIT[:12]}-no-cache-[0-9a-f]{{8}}", backend.versions[0]["display_name"])
    plain, *_ = yaml.safe_load_all(packages.build("small").text)
    without, *_ = yaml.safe_load_all(backend.packages["version-1"])
    for spec, cached in ((plain, True), (without, False)):
        nested = spec["components"]["comp-for-loop-1"]["dag"]["tasks"]["encode"]
        assert nested["cachingOptions"].get("enableCache", False) is cached
        assert spec["root"]["dag"]["tasks"]["train"]["cachingOptions"].get("enableCache", False) is cached


def test_dry_run_shows_all_and_sends_nothing(backend: Backend) -> None:
    code, text = run(
        backend,
        Request(settings=["train.steps=7", "train.beta2=0.9"], schedule=Schedule(interval_seconds=60)),
        dry_run=True,
        namespace="team-a",
        existing_token=TOKEN,
    )
    assert code == 0
    assert backend.requests == []
    for shown in (
        backend.host,
        "team-a",
        "latentflow-training",
        COMMIT,
        "every 60 s",
        "train_steps = 7  (default 1300)",
    ):
        assert shown in text
    assert "overrides: train.beta2 = 0.9" in text
    assert TOKEN not in text


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(settings=["train.steps=0"]), "train.steps: Input should be greater than or equal to 1, found 0"),
        (Request(settings=["train.stepz=1"]), "train.stepz: unknown parameter"),
        (Request(settings=["model.pixart.patch_size=3"]), "does not divide latents"),
        (Request(fields=["train_steps=3"]), "this is a parameter; write --set train.steps=3"),
        (Request(fields=["encode_parts=many"]), "encode_parts: expected a whole number, found 'many'"),
        (Request(fields=["encode_parts=1.5"]), "expected a whole number, found '1.5'"),
        (Request(fields=["parts=3"]), "no such input; it has encode_parts, force_rerun, image_cpu"),
        (Request(fields=["force_rerun"]), "expected name=value"),
        (Request(fields=["overrides={}"]), "write --set section.field=value"),
        (Request(pipeline="elsewhere"), "--pipeline elsewhere: choose one of training, fine_tune"),
        (Request(params=Path("nowhere.yaml")), "nowhere.yaml does not exist"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_sent(backend: Backend, request_: Request, message: str) -> None:
    with pytest.raises(ParamsError, match=re.escape(message)):
        run(backend, request_)
    assert backend.requests == []


def test_a_params_file_is_sent_as_far_as_it_differs(backend: Backend, tmp_path: Path) -> None:
    values = yaml.safe_load((PROJECT / "params.yaml").read_text())
    values["train"] |= {"steps": 5, "ideas": {"contrastive": 0.05}, "checkpoint_minutes": 10.0}
    values["evaluate"]["gallery_prompts"] = ["pizza"]
    values["encode"]["flip"] = True
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    run(backend, Request(params=path, settings=["train.steps=6"]))
    assert backend.runs[0]["runtime_config"]["parameters"] == {
        "train_steps": 6,
        "overrides": {"encode.flip": True, "train.ideas": {"contrastive": 0.05}, "evaluate.gallery_prompts": ["pizza"]},
    }


@pytest.mark.parametrize("own_defaults", [False, True])
def test_an_edited_params_file_counts_unless_the_pipeline_has_its_own_defaults(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_defaults: bool
) -> None:
    edited = tmp_path / "params.yaml"
    edited.write_text((PROJECT / "params.yaml").read_text().replace("steps: 1300", "steps: 500"))
    for module in (configuration, sending_arguments, plan):
        monkeypatch.setattr(module, "PARAMS", edited)
    monkeypatch.setattr(plan, "OWN_DEFAULTS", ("small",) if own_defaults else ())
    run(backend, Request(pipeline="small", settings=["train.learning_rate=0.1"]))
    expected = {"train_learning_rate": 0.1} | ({} if own_defaults else {"train_steps": 500})
    assert backend.runs[0]["runtime_config"]["parameters"] == expected


def test_images_places_and_numbers_become_arguments(backend: Backend) -> None:
    name = f"registry.example/team/latentflow-gpu@sha256:{'a' * 64}"
    _, text = run(
        backend,
        Request(pipeline="small", images=Images(gpu=name), fields=["storage=s3://bucket/7", "encode_parts=1"]),
    )
    assert backend.runs[0]["runtime_config"]["parameters"] == {"image_gpu": name, "storage": "s3://bucket/7"}
    assert "warning: image_cpu: latentflow-cpu:0.1.0 is used as it is (the name has no registry in front" in text
    assert "warning: image_gpu" not in text


def test_a_registry_takes_both_images_under_their_own_names(backend: Backend) -> None:
    # Nothing listens there: the tags go as they are, and it is said.
    _, text = run(backend, Request(pipeline="small", images=Images(registry="localhost:9/team/")))
    assert backend.runs[0]["runtime_config"]["parameters"] == {
        "image_cpu": "localhost:9/team/latentflow-cpu:0.1.0",
        "image_gpu": "localhost:9/team/latentflow-gpu:0.1.0",
    }
    assert text.count("Kubeflow's cache knows an image by its name only") == 2


def test_a_token_is_sent_and_never_shown(backend: Backend) -> None:
    backend.token = TOKEN
    code, text = run(backend, Request(pipeline="small"), existing_token=TOKEN)
    assert code == 0
    assert {each.headers["authorization"] for each in backend.requests} == {f"Bearer {TOKEN}"}
    assert TOKEN not in text
    assert TOKEN not in repr(Connection(existing_token=TOKEN, cookies=TOKEN))


def test_a_wrong_token_is_one_sentence_that_says_what_to_do(backend: Backend) -> None:
    backend.token = "another"
    with pytest.raises(CredentialsError, match="wants a token, or another one") as caught:
        run(backend, Request(pipeline="small"), existing_token=TOKEN)
    assert "docs/submit.md" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert backend.versions == []
    assert len(backend.requests) == 1


def test_a_token_file_and_a_mounted_token_are_used(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.token = TOKEN
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert run(backend, Request(pipeline="small"), token_file=path)[0] == 0
    # A file that is named comes before a token that lies about in the environment.
    assert run(backend, Request(pipeline="small"), token_file=path, existing_token="old")[0] == 0
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(path))
    assert run(backend, Request(pipeline="small"))[0] == 0
    with pytest.raises(KubeflowError, match="no such file"):
        run(backend, Request(pipeline="small"), token_file=tmp_path / "none")


def test_cookies_go_along(backend: Backend) -> None:
    run(backend, Request(pipeline="small"), cookies="oauth2_proxy_kubeflow=abc")
    assert {each.headers["cookie"] for each in backend.requests} == {"oauth2_proxy_kubeflow=abc"}


def test_a_login_page_is_not_taken_for_an_answer(backend: Backend) -> None:
    backend.login_page = True
    with pytest.raises(CredentialsError, match="a login page instead of an answer"):
        run(backend, Request(pipeline="small"))
    assert len(backend.requests) == 1


def test_another_server_is_no_pipelines_api(backend: Backend) -> None:
    with pytest.raises(KubeflowError, match="ends in /pipeline"):
        submit.submit(Request(pipeline="small"), Connection(host=f"{backend.host}/x"), None, False, Console())


def test_nobody_there_and_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match=r"does not answer .*port-forward"):
        submit.submit(Request(pipeline="small"), Connection(host="http://127.0.0.1:9"), None, False, Console())
    with pytest.raises(KubeflowError, match="No address of Kubeflow: give --host"):
        submit.submit(Request(pipeline="small"), Connection(), None, False, Console())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_is_checked(tmp_path: Path) -> None:
    made = [
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-subj",
        "/CN=x",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", *made], cwd=tmp_path, check=True, capture_output=True
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    backend = Backend()
    with Server(backend, tls):
        with pytest.raises(KubeflowError, match="give --ssl-ca-cert"):
            run(backend, Request(pipeline="small"))
        assert run(backend, Request(pipeline="small"), ssl_ca_cert=str(tmp_path / "cert.pem"))[0] == 0
        assert run(backend, Request(pipeline="small"), verify_ssl=False)[0] == 0


def test_the_environment_names_the_host(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", backend.host)
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example.com/pipeline/")
    out = io.StringIO()
    submit.submit(Request(pipeline="small"), Connection(), None, False, Console(file=out, width=200))
    assert "https://kubeflow.example.com/pipeline/#/runs/details/run-1" in out.getvalue()


def test_several_users_need_a_namespace_and_it_goes_everywhere(backend: Backend) -> None:
    backend.multi_user = True
    with pytest.raises(KubeflowError, match="name your namespace by --namespace"):
        run(backend, Request(pipeline="small"))
    assert run(backend, Request(pipeline="small"), namespace="team-a")[0] == 0
    assert backend.pipelines[0]["namespace"] == backend.experiments[0]["namespace"] == "team-a"
    assert run(backend, Request(pipeline="small"), namespace="team-b")[0] == 0
    assert len(backend.pipelines) == 2


def test_one_user_gets_no_namespace_whatever_is_set(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "context.json").write_text(json.dumps({"namespace": "of-another-cluster"}))
    assert run(backend, Request(pipeline="small"), namespace="team-a")[0] == 0


@pytest.mark.parametrize(
    ("path", "what"),
    [("upload_version", "take the package"), ("/pipelines", "list pipelines"), ("/runs", "create the run")],
)
def test_a_refusal_says_what_and_why(backend: Backend, path: str, what: str) -> None:
    backend.forbidden = path
    message = f"does not let you {what} (User 'team-a' is not authorized with reason: no): use a token of an account"
    with pytest.raises(CredentialsError, match=re.escape(message)):
        run(backend, Request(pipeline="small"))


def test_what_the_backend_finds_wrong_is_told(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    text = packages.build("small").text.replace("schemaVersion:", "schema_of_tomorrow:")
    monkeypatch.setattr(packages, "package", lambda *_: text)
    with pytest.raises(
        KubeflowError, match=r"could not take the package \(400\): invalid package: .*schema_of_tomorrow"
    ):
        run(backend, Request(pipeline="small"))


# Recurring runs


def test_a_recurring_run(backend: Backend) -> None:
    schedule = Schedule(cron="0 0 3 * * *", max_concurrency=2, enabled=False)
    code, text = run(backend, Request(pipeline="small", settings=["train.steps=9"], schedule=schedule), QUICK)
    assert code == 0
    (made,) = backend.recurring
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert (made["mode"], made["max_concurrency"], made["no_catchup"]) == ("DISABLE", 2, True)
    assert made["runtime_config"]["parameters"] == {"train_steps": 9}
    assert made["display_name"] == "small 0 0 3 * * *"
    assert made["pipeline_version_reference"]["pipeline_version_id"] == "version-1"
    assert f"{backend.host}/#/recurringrun/details/recurring-1" in text
    assert backend.runs == []


def test_a_second_schedule_of_the_same_name_is_warned_of(backend: Backend) -> None:
    request = Request(pipeline="small", schedule=Schedule(interval_seconds=3600, catch_up=True))
    assert "warning" not in run(backend, request)[1].replace("warning: image", "")
    assert "recurring-1 of the same name is enabled too" in run(backend, request)[1]
    assert backend.recurring[1]["trigger"] == {"periodic_schedule": {"interval_second": 3600}}
    assert (backend.recurring[1]["mode"], backend.recurring[1]["no_catchup"]) == ("ENABLE", False)


@pytest.mark.parametrize(
    ("cron", "interval", "concurrency", "message"),
    [
        ("0 3 * * *", 0, 1, "expected six fields, seconds first"),
        ("", 0, 1, "needs --cron or --interval, one of them"),
        ("0 0 3 * * *", 60, 1, "needs --cron or --interval, one of them"),
        ("@daily", 0, 11, "from 1 to 10, found 11"),
    ],
)
def test_a_schedule_that_cannot_be(cron: str, interval: int, concurrency: int, message: str) -> None:
    with pytest.raises(LatentflowError, match=message):
        Schedule(cron, interval, concurrency)


# Following


def story(*last: str, attempts: tuple[str, ...] = ()) -> list[Frame]:
    """A run of the small pipeline at five looks, its train ending in the state ``last``."""
    check = task_nodes("check", "SUCCEEDED", 0, 10)
    parts = [("1/2", "SUCCEEDED", 40), ("2/2", "RUNNING", None)]
    encoding = [
        node for part, state, end in parts for node in task_nodes("encode", state, 10, end, where=f"loop.{part}.")
    ]
    encoded = [node for part, _, _ in parts for node in task_nodes("encode", "SUCCEEDED", 10, 50, where=f"{part}.")]
    running = task_nodes("train", "RUNNING", 50, attempts=("FAILED", "RUNNING") if attempts else ())
    (state,) = last
    ended = task_nodes("train", state, 50, 110, attempts=attempts)
    return [
        Frame("PENDING"),
        Frame("RUNNING", task_nodes("check", "RUNNING", 0)),
        Frame("RUNNING", [*check, *encoding]),
        Frame("RUNNING", [*check, *encoded, *running]),
        Frame(state, [*check, *encoded, *ended]),
    ]


def test_a_run_is_followed_to_its_end(backend: Backend) -> None:
    backend.frames = story("SUCCEEDED")
    code, text = run(backend, Request(pipeline="small"), QUICK)
    assert code == 0
    lines = [line for line in text.splitlines() if re.match(r"(check|encode|train|executor|root|.*driver):", line)]
    assert [re.sub(r", [\d:]+$", "", line) for line in lines] == [
        "check: running",
        "check: succeeded",
        "encode: running 1/2",
        "encode: succeeded 2/2",
        "train: running",
        "train: succeeded",
    ]
    assert "train: succeeded, 1:00" in lines
    assert "The run succeeded." in text
    assert "set MLFLOW_TRACKING_URI" in text


def test_on_a_terminal_there_is_one_line_per_task(backend: Backend) -> None:
    backend.frames = story("SUCCEEDED", attempts=("FAILED", "SUCCEEDED"))
    out = io.StringIO()
    connection = Connection(host=backend.host)
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    assert submit.submit(Request(pipeline="small"), connection, QUICK, False, console) == 0
    last = re.split(r"run succeeded\s*\n", out.getvalue())[-1]
    assert re.search(r"check +succeeded +0:10", last)
    assert re.search(r"encode +succeeded 2/2 +0:40", last)
    assert re.search(r"train +succeeded +1:00 +1 retry", last)


def test_a_failed_task_is_named_with_its_last_attempts_log(backend: Backend) -> None:
    backend.frames = story("FAILED", attempts=("FAILED", "FAILED", "FAILED"))
    name = f"{WORKFLOW}.root.train.executor"
    pods = [node_id(f"{name}({number})").rpartition("-")[2] for number in range(3)]
    for number, pod in enumerate(pods):
        log = [f"line {line} of attempt {number}" for line in range(50)]
        backend.logs[f"{WORKFLOW}-retry-system-container-impl-{pod}"] = "\n".join(log)
    code, text = run(backend, Request(pipeline="small"), QUICK)
    assert code == 1
    assert "train: failed, 2 retries, 1:00" in text
    assert "train failed; the last lines of its log:\n  line 30 of attempt 2\n" in text
    assert "line 49 of attempt 2" in text
    assert "attempt 1" not in text
    assert f"The run ended failed. Kubeflow: {backend.host}/#/runs/details/run-1" in text


def test_a_failed_task_without_a_log_is_named_with_reason_and_page(backend: Backend) -> None:
    backend.frames = story("FAILED")
    backend.frames[-1].error = "the pod was evicted"
    code, text = run(backend, Request(pipeline="small"), QUICK)
    assert code == 1
    assert "train failed.\n" in text
    assert "<!doctype" not in text
    assert f"The run ended failed (the pod was evicted). Kubeflow: {backend.host}" in text


@pytest.mark.parametrize("by_user_interface", [True, False])
def test_an_only_attempts_log_is_found(backend: Backend, by_user_interface: bool) -> None:
    backend.frames = story("FAILED")
    pod = node_id(f"{WORKFLOW}.root.train.executor")
    (backend.ui_logs if by_user_interface else backend.logs)[pod] = "the only attempt"
    assert "its log:\n  the only attempt\n" in run(backend, Request(pipeline="small"), QUICK)[1]


def test_a_task_that_never_ran_is_not_said_to_wait(backend: Backend) -> None:
    backend.frames = [Frame("FAILED", task_nodes("check", "FAILED", 0, 3))]
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    assert submit.submit(Request(pipeline="small"), Connection(host=backend.host), QUICK, False, console) == 1
    assert re.search(r"train +not run", out.getvalue())


def test_hiccups_are_told_once_and_outlived(backend: Backend) -> None:
    backend.faults = [503, 503, 500, 429]
    code, text = run(backend, Request(pipeline="small"), QUICK)
    assert code == 0
    assert text.count("could not show run run-1 just now (503 no healthy upstream). Trying again.") == 1
    assert text.count("answers again.") == 1


def test_a_server_that_stays_away_ends_the_following_not_the_run(backend: Backend) -> None:
    backend.faults = [503] * 1000
    with pytest.raises(UnavailableError, match=r"503 .*The run itself goes on; .*--attach run-1"):
        run(backend, Request(pipeline="small"), Watch(poll=0.01, patience=0.1))


def test_an_expired_token_is_read_again_from_its_file(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    backend.token = "first"

    def expire() -> None:
        backend.token = "second"
        threading.Timer(0.1, path.write_text, ["second"]).start()

    backend.frames = [Frame("RUNNING"), Frame("RUNNING"), Frame("SUCCEEDED")]
    backend.on_look = expire
    code, text = run(backend, Request(pipeline="small"), QUICK, token_file=path)
    assert code == 0
    assert "Trying again with what the token's file holds then." in text
    assert {each.headers["authorization"] for each in backend.requests} == {"Bearer first", "Bearer second"}


def test_an_expired_token_that_cannot_be_renewed_ends_the_following(backend: Backend) -> None:
    backend.token = TOKEN
    backend.frames = [Frame("RUNNING")]
    backend.on_look = lambda: setattr(backend, "token", "another")
    with pytest.raises(CredentialsError, match=r"wants a token, or another.*The run itself goes on") as caught:
        run(backend, Request(pipeline="small"), QUICK, existing_token=TOKEN)
    assert TOKEN not in str(caught.value)


def test_a_session_that_ends_is_not_taken_for_a_run(backend: Backend) -> None:
    backend.frames = [Frame("RUNNING")]
    backend.on_look = lambda: setattr(backend, "login_page", True)
    with pytest.raises(CredentialsError, match="the session or token has expired"):
        run(backend, Request(pipeline="small"), QUICK)


def test_interrupting_stops_the_following_not_the_run(backend: Backend) -> None:
    # A shell without job control starts what runs in the background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    backend.frames = [Frame("RUNNING")]
    main = threading.main_thread().ident
    assert main is not None
    backend.on_look = lambda: signal.pthread_kill(main, signal.SIGINT) if backend.looks == 2 else None
    try:
        code, text = run(backend, Request(pipeline="small"), QUICK)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "No longer following. The run itself goes on; follow it again by `latentflow submit --attach run-1`" in text
    assert [each.path for each in backend.requests if "terminate" in each.path] == []


def test_following_has_a_time_limit(backend: Backend) -> None:
    backend.frames = [Frame("RUNNING")]
    with pytest.raises(TimedOutError, match=r"--timeout is over\. The run itself goes on"):
        run(backend, Request(pipeline="small"), Watch(poll=0.01, timeout=0.1))


def test_a_run_is_attached_to_with_its_versions_tasks(backend: Backend) -> None:
    backend.frames = story("SUCCEEDED")
    run(backend, Request(pipeline="small"))
    before = len(sent(backend, "POST", "runs"))
    out = io.StringIO()
    assert submit.attach("run-1", Connection(host=backend.host), QUICK, Console(file=out, width=200)) == 0
    assert "encode: succeeded 2/2" in out.getvalue()
    assert len(sent(backend, "POST", "runs")) == before
    with pytest.raises(KubeflowError, match=r"could not show run gone \(404\): gone not found"):
        submit.attach("gone", Connection(host=backend.host), QUICK, Console(file=out))


def test_a_run_without_a_version_shows_the_nodes_that_do_work(backend: Backend) -> None:
    backend.frames = story("SUCCEEDED")
    backend.runs.append({"run_id": "run-1", "display_name": "by hand"})
    out = io.StringIO()
    assert submit.attach("run-1", Connection(host=backend.host), QUICK, Console(file=out, width=200)) == 0
    assert re.findall(r"^(\S+): succeeded", out.getvalue(), re.MULTILINE) == ["check", "encode", "train"]


def test_mlflow_is_linked_where_kubeflow_knows_it(backend: Backend) -> None:
    link = {"value": "https://mlflow.example/#/experiments/1/runs/abc", "render_type": "URL"}
    backend.plugins = {"mlflow": {"entries": {"run": link}, "state": "PLUGIN_SUCCEEDED"}}
    assert f"MLflow: {link['value']}" in run(backend, Request(pipeline="small"), QUICK)[1]


def test_mlflow_is_found_by_its_tag(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    experiment = client.create_experiment("latentflow")
    made = client.create_run(experiment, tags={"latentflow.kfp_run_id": "run-1"}).info.run_id
    client.create_run(experiment, tags={"latentflow.kfp_run_id": "run-1", "mlflow.parentRunId": made})
    assert f"MLflow: run {made} in {uri}" in run(backend, Request(pipeline="small"), QUICK)[1]
    monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example/")
    backend.runs.clear()
    page = f"MLflow: https://mlflow.example/#/experiments/{experiment}/runs/{made}"
    assert page in run(backend, Request(pipeline="small"), QUICK)[1]
    assert "has no run of this pipeline run" in run(backend, Request(pipeline="small"), QUICK)[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, text = run(backend, Request(pipeline="small"), QUICK)
    assert code == 0
    assert "The MLflow server at http://127.0.0.1:9 does not answer" in text


# The command


def command(
    arguments: list[str], folder: Path, python_path: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    names = {**os.environ, "PYTHONPATH": python_path, **environment}
    return subprocess.run(
        [sys.executable, "-m", "latentflow.cli", "submit", *arguments],
        cwd=folder,
        env=names,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_command_submits_from_any_folder(backend: Backend, tmp_path: Path) -> None:
    backend.token = TOKEN
    backend.frames = [Frame("RUNNING"), Frame("FAILED", task_nodes("ingest", "FAILED", 0, 3))]
    arguments = ["--set", "train.steps=3", "--field", "force_rerun=a", "--poll", "0.1", "--timeout", "1m"]
    done = command(
        arguments, tmp_path, str(PROJECT), KF_PIPELINES_ENDPOINT=backend.host, KF_PIPELINES_TOKEN=TOKEN, COLUMNS="200"
    )
    assert done.returncode == 1, done.stderr
    assert "ingest failed" in done.stdout
    assert backend.runs[0]["runtime_config"]["parameters"] == {"train_steps": 3, "force_rerun": "a"}
    assert TOKEN not in done.stdout + done.stderr
    wrong = command(["--set", "train.steps=0", "--host", backend.host], tmp_path, str(PROJECT))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")


def test_without_sources_the_command_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "latentflow").symlink_to(PROJECT / "latentflow")
    done = command(["--dry-run"], tmp_path, str(tmp_path))
    assert done.returncode == 1
    assert "clone the project and run it in that folder" in done.stderr


def test_without_kfp_the_command_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['kfp'] = None\n")
    done = command(["--dry-run"], tmp_path, os.pathsep.join([str(tmp_path), str(PROJECT)]))
    assert done.returncode == 1
    assert ".[kubeflow]" in done.stderr
