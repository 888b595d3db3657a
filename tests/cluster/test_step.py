"""train_distributed from end to end: what the cluster would do with the job is done here, by its very command."""

import csv
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from kubernetes_api import NAMESPACE, Pod, Refusal, SmallApi, small_api, write_kubeconfig
from object_store import s3_bucket
from trainings import settings, world

pytest.importorskip("kubeflow.trainer", reason="Kubeflow's SDK is not installed (extra distributed)")

from latentflow import __version__
from latentflow.cluster import api as cluster_api
from latentflow.cluster.options import JobOptions, Volume
from latentflow.data import parcels
from latentflow.errors import LatentflowError, ParamsError
from latentflow.manifest import ModelManifest
from latentflow.steps import train, train_distributed
from latentflow.steps.train_distributed import Nodes

CPU = Nodes("latentflow-gpu:0.1.0", 2, 0)


class Kubelet:
    """Runs the pods of every job that is created as processes of this machine; those that fail begin anew."""

    def __init__(self, api: SmallApi, folder: Path, attempts: int = 1) -> None:
        self._api, self._folder, self._attempts = api, folder, attempts
        self.processes: list[subprocess.Popen[str]] = []
        api.on_create = lambda job: threading.Thread(target=self._run, args=(job,), daemon=True).start()

    def _run(self, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        for attempt in range(self._attempts):
            codes = self._attempt(job, attempt)
            if not any(codes):
                self._api.condition(name, "Complete")
                return
        self._api.condition(name, "Failed", "jobset failed")

    def _attempt(self, job: dict[str, Any], attempt: int) -> list[int]:
        trainer = job["spec"]["trainer"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pods = [self._api.start_pod(job["metadata"]["name"], node) for node in range(trainer["numNodes"])]
        self.processes, readers = [], []
        for node, pod in enumerate(pods):
            words = [word.replace("$$", "$") for word in (*trainer["command"], *trainer["args"])]
            environment = self._environment(trainer, node, port, self._folder / f"{pod.name}-{attempt}")
            process = subprocess.Popen(
                words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self._folder
            )
            self.processes.append(process)
            readers.append(threading.Thread(target=self._read, args=(process, pod), daemon=True))
            readers[-1].start()
        for reader in readers:
            reader.join()
        return [process.returncode for process in self.processes]

    def _environment(self, trainer: dict[str, Any], node: int, port: int, store: Path) -> dict[str, str]:
        """The image's, the Secret's (this process has it) and the job's, and what the torch plugin adds."""
        plugin = {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": str(node),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
        }
        secret = {one["name"] for one in trainer["env"] if "valueFrom" in one}
        base = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "LATENTF"))
        }
        given = {name: os.environ[name] for name in secret if name in os.environ}
        plain = {one["name"]: one["value"].replace("$$", "$") for one in trainer["env"] if "value" in one}
        image = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        return base | {"LATENTFLOW_STORE": str(store), "PYTHONUNBUFFERED": "1"} | image | given | plain | plugin

    def _read(self, process: "subprocess.Popen[str]", pod: Pod) -> None:
        assert process.stdout
        for line in process.stdout:
            self._api.say(pod, line.rstrip("\n"))
        self._api.end(pod, process.wait())


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the nodes compute: sums in another number of threads have other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> train.Sources:
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("team") as url:
        yield url


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallApi]:
    """A cluster that ``connect`` finds."""
    from kubernetes.client import ApiClient, Configuration

    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("LATENTFLOW_CHECKPOINTS", raising=False)
    monkeypatch.setenv("KFP_RUN_ID", "11112222-3333-4444-5555-666677778888")
    monkeypatch.setenv("LATENTFLOW_IMAGE", "")
    monkeypatch.setenv("KFP_POD_NAME", "step-pod")
    monkeypatch.setenv("KFP_POD_UID", "uid-of-step")
    monkeypatch.chdir(tmp_path)
    with small_api() as (served, url):
        client = ApiClient(Configuration(host=url))
        monkeypatch.setattr(cluster_api, "connect", lambda: cluster_api.Cluster(client, NAMESPACE))
        yield served


def losses(model: Path) -> list[float]:
    with (model / "plots" / "train.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_nodes_train_what_one_process_trains(
    api: SmallApi, bucket: str, sources: train.Sources, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(precision="fp64", log_every=1)
    Kubelet(api, tmp_path)
    with caplog.at_level(logging.INFO):
        made = train_distributed.run(chosen, sources, f"{bucket}/two/", CPU, JobOptions(), tmp_path / "model")
    (job,) = api.jobs.values()
    assert job["metadata"]["name"] == f"latentflow-{made.fingerprint[:12]}-11112222"
    assert job["metadata"]["ownerReferences"][0]["uid"] == "uid-of-step"
    assert made.lineage["image"] == CPU.image
    assert made.lineage["kfp_run_id"] == "11112222-3333-4444-5555-666677778888"
    assert any("parameters" in line for line in caplog.messages), "what rank 0 logs comes here"

    alone = train.run(chosen, sources, tmp_path / "alone")
    assert alone
    assert made.fingerprint == alone.fingerprint
    assert losses(tmp_path / "model") == pytest.approx(losses(tmp_path / "alone"), rel=1e-9)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}

    # Another step of the same parameters and data, in another run, finds the model in the bucket.
    jobs = dict(api.jobs)
    again = train_distributed.run(chosen, sources, f"{bucket}/two", CPU, JobOptions(), tmp_path / "again")
    assert again == made
    assert api.jobs == jobs


@pytest.mark.slow
def test_one_node_gives_the_same_digest_as_train(
    api: SmallApi, bucket: str, sources: train.Sources, tmp_path: Path
) -> None:
    one = Nodes(CPU.image, 1, 0)
    Kubelet(api, tmp_path)
    made = train_distributed.run(settings(), sources, f"{bucket}/one", one, JobOptions(), tmp_path / "model", "token")
    alone = train.run(settings(), sources, tmp_path / "alone", "token")
    assert alone
    assert (made.digest, made.fingerprint) == (alone.digest, alone.fingerprint)


@pytest.mark.slow
def test_a_killed_node_is_started_again_and_training_goes_on(
    api: SmallApi, bucket: str, sources: train.Sources, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(
        precision="fp64", steps=100, checkpoint_every=10, validate_every=100, sample_every=100, log_every=1
    )
    kubelet = Kubelet(api, tmp_path, attempts=2)
    killed = threading.Event()

    def kill() -> None:
        checkpoints = parcels.RemoteFolder(f"{bucket}/killed/checkpoints")
        while not any(name.endswith("files.json") for name in checkpoints.names()):
            time.sleep(0.2)
        # A node that is lost takes all of its processes along.
        launcher = psutil.Process(kubelet.processes[1].pid)
        for process in (*launcher.children(recursive=True), launcher):
            process.kill()
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    with caplog.at_level(logging.INFO):
        train_distributed.run(chosen, sources, f"{bucket}/killed", CPU, JobOptions(), tmp_path / "model")
    assert killed.is_set()
    assert any("going on from step" in line for line in caplog.messages)
    assert any("rank 0 begins again" in line for line in caplog.messages)
    assert train.run(chosen, sources, tmp_path / "alone")
    assert losses(tmp_path / "model") == pytest.approx(losses(tmp_path / "alone"), rel=1e-9)


def test_what_goes_wrong_in_the_pods_is_in_the_error(
    api: SmallApi, bucket: str, sources: train.Sources, tmp_path: Path
) -> None:
    def fail(job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        pod = api.start_pod(name, 0)
        api.say(pod, "error: there is no CUDA device")
        api.end(pod, 1)
        api.condition(name, "Failed", "jobset failed")

    api.on_create = fail
    with pytest.raises(LatentflowError, match=r"(?s)exit code 1\..*\| error: there is no CUDA device"):
        train_distributed.run(settings(), sources, f"{bucket}/failed", CPU, JobOptions(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_job_that_leaves_no_model_is_told(api: SmallApi, bucket: str, sources: train.Sources, tmp_path: Path) -> None:
    api.on_create = lambda job: api.condition(job["metadata"]["name"], "Complete")
    with pytest.raises(LatentflowError, match=r"is complete, but .*/models/.* is not there"):
        train_distributed.run(settings(), sources, f"{bucket}/nothing", CPU, JobOptions(), tmp_path / "model")


def test_what_only_this_machine_reads_is_copied_once(
    api: SmallApi, bucket: str, sources: train.Sources, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.on_create = lambda job: api.condition(job["metadata"]["name"], "Failed", "no matter")
    for _ in range(2):
        with caplog.at_level(logging.INFO), pytest.raises(LatentflowError):
            train_distributed.run(settings(), sources, f"{bucket}/copied", CPU, JobOptions(), tmp_path / "model")
    assert sum("which only this machine can read" in line for line in caplog.messages) == 2
    (job,) = api.jobs.values()
    words = job["spec"]["trainer"]["args"]
    encoded, vae = (words[words.index(option) + 1] for option in ("--encoded", "--autoencoder"))
    assert encoded.startswith(f"{bucket}/copied/encoded/")
    assert vae.startswith(f"{bucket}/copied/autoencoders/")
    reached = train.Sources(encoded, vae)
    assert train.identify(settings(), reached) == train.identify(settings(), sources)


def test_what_lies_on_the_volume_is_read_where_it_is(api: SmallApi, sources: train.Sources, tmp_path: Path) -> None:
    shared = Path(sources.encoded).parent
    options = JobOptions(volumes=[Volume(claim="shared", path=str(shared))])

    def train_there(job: dict[str, Any]) -> None:
        words = job["spec"]["trainer"]["args"]
        train.run(settings(), sources, words[words.index("--out") + 1])
        api.condition(job["metadata"]["name"], "Complete")

    api.on_create = train_there
    made = train_distributed.run(settings(), sources, str(shared), CPU, options, tmp_path / "model")
    (job,) = api.jobs.values()
    trainer = job["spec"]["trainer"]
    assert trainer["args"][trainer["args"].index("--encoded") + 1] == str(sources.encoded)
    plain = {one["name"]: one.get("value") for one in trainer["env"]}
    assert plain["LATENTFLOW_CHECKPOINTS"] == f"{shared}/checkpoints"
    assert plain["LATENTFLOW_STORE"] == f"{shared}/store"
    assert ModelManifest.read(tmp_path / "model") == made
    assert sorted(path.name for path in shared.iterdir() if path.name in ("encoded", "models")) == ["encoded", "models"]
    component(sources, shared, options, tmp_path / "artifact")


def component(sources: train.Sources, storage: Path, options: JobOptions, out: Path) -> None:
    """The component's body finds the same model, and tells of it in its artifacts."""
    dsl = pytest.importorskip("kfp.dsl", reason="kfp is not installed (extra kubeflow)")
    from components.train_distributed import train_distributed as made

    def artifact(path: Path | str) -> SimpleNamespace:
        return SimpleNamespace(path=str(path), metadata={})

    model, metrics, summary, report = (
        artifact(out),
        dsl.Metrics(metadata={}),
        artifact(f"{out}.md"),
        artifact(f"{out}.html"),
    )
    made.python_func(
        params=json.loads(settings().model_dump_json()),
        encoded=artifact(sources.encoded),
        autoencoder=artifact(sources.autoencoder),
        model=model,
        metrics=metrics,
        summary=summary,
        report=report,
        image=CPU.image,
        version=__version__,
        storage=str(storage),
        options=options.model_dump(mode="json"),
        num_nodes=2,
        gpus=0,
    )
    manifest = ModelManifest.read(out)
    assert model.metadata["fingerprint"] == manifest.fingerprint
    assert metrics.metadata == json.loads((out / "metrics.json").read_text())
    assert Path(summary.path).stat().st_size
    assert Path(report.path).stat().st_size


@pytest.mark.parametrize(
    ("storage", "nodes", "words"),
    [
        ("", CPU, r"storage: training on many nodes needs a bucket .* found none"),
        ("/somewhere", CPU, r"storage /somewhere lies on none of the volumes"),
        ("s3://team/x", Nodes("i", 3, 0), r"train\.batch_size 8 is the global batch .* of the 3 processes"),
        ("s3://team/x", Nodes("i", 2, 8), r"train\.batch_size 8 is the global batch .* of the 16 processes"),
        ("s3://team/x", Nodes("i", 0, 1), "0 nodes of 1 GPUs train nothing"),
    ],
)
def test_what_cannot_work_is_told_before_a_job_is_made(
    api: SmallApi, sources: train.Sources, storage: str, nodes: Nodes, words: str, tmp_path: Path
) -> None:
    with pytest.raises(LatentflowError, match=words):
        train_distributed.run(settings(), sources, storage, nodes, JobOptions(), tmp_path / "model")
    assert api.requests == []


def test_a_cluster_without_trainjobs_is_told_before_anything_is_copied(
    api: SmallApi, bucket: str, sources: train.Sources, tmp_path: Path
) -> None:
    api.refusals.append(Refusal("GET", "trainjobs", 404, "404 page not found"))
    with pytest.raises(LatentflowError, match=r"install Kubeflow Trainer 2\.2 or newer"):
        train_distributed.run(settings(), sources, f"{bucket}/unknown", CPU, JobOptions(), tmp_path / "model")
    api.refusals[0] = Refusal("GET", "trainjobs", 503, "overloaded")
    with pytest.raises(LatentflowError, match=r"The cluster's API does not answer: 503 overloaded\."):
        train_distributed.run(settings(), sources, f"{bucket}/unknown", CPU, JobOptions(), tmp_path / "model")
    assert parcels.RemoteFolder(f"{bucket}/unknown").names() == []


def test_without_a_cluster_the_sentence_says_so(
    bucket: str, sources: train.Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(LatentflowError, match=r"No cluster can be reached: .* set KUBECONFIG"):
        cluster_api.connect()
    write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    assert cluster_api.connect().client.configuration.host == "http://127.0.0.1:1"


def test_options_are_checked_by_name() -> None:
    from latentflow.params import parse

    with pytest.raises(ParamsError, match="queu: unknown parameter"):
        parse(JobOptions, {"queu": "x"}, "cluster")
    with pytest.raises(ParamsError, match=r"volumes\.0\.path"):
        parse(JobOptions, {"volumes": [{"claim": "c", "path": "relative"}]}, "cluster")
    # What travelled through Kubeflow has its integers as floats.
    assert parse(JobOptions, {"grace_seconds": 60.0}, "cluster").grace_seconds == 60
