"""From the first champion to a rollback, with every step real and every model tiny; docs/registry.md tells the same."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient
from registry_helpers import clean_environment
from test_promotion import assert_one_after_the_other, go, plans, start
from test_serving import Served, decoded, running

from latentflow.errors import RefusedError
from latentflow.generation.drawing import Model
from latentflow.manifest import RegistrationManifest
from latentflow.params import Params, for_step, load
from latentflow.registry import marks, pulling, store
from latentflow.steps import autoencoder, encode, evaluate, ingest, register, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).parents[2]
NAME = "tiny"
TINY = [
    f"{name}={json.dumps(value)}" for name, value in yaml.safe_load((ROOT / "pipelines/tiny.yaml").read_text()).items()
]
SIZES = [
    "ingest.limit=200",
    "autoencoder.steps=60",
    "encode.shard_size=64",
    "train.learning_rate=0.003",
    "train.validate_every=1000",
    "train.sample_every=1000",
    "train.checkpoint_every=1000",
    "train.ema_decay=0.9",
    "evaluate.captions=24",
    "evaluate.grid.steps=[3]",
    f"register.name={NAME}",
    "register.gate.comparisons={heldout_loss: 2%}",
]


@dataclass(frozen=True)
class Project:
    """A project's folder with records, autoencoder and encoded set in place."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    def params(self, *changes: str) -> Params:
        return load(ROOT / "params.yaml", [*TINY, *SIZES, *changes])

    def make(self, model: str, *changes: str) -> None:
        """Trains and judges a model: ``data/<model>`` and ``data/<model>-evaluation``."""
        params, out = self.params(*changes), self.data / model
        train.run(for_step(params, "train"), train.Sources(self.data / "encoded", self.data / "autoencoder"), out)
        encoded, records = self.data / "encoded", self.data / "records"
        evaluate.run(for_step(params, "evaluate"), out, encoded, records, self.data / f"{model}-evaluation")

    def register(self, model: str, *changes: str) -> RegistrationManifest:
        return register.run(
            for_step(self.params(*changes), "register"),
            self.data / model,
            self.data / f"{model}-evaluation",
            self.data / "registration",
            encoded=self.data / "encoded",
            records=self.data / "records",
        )

    @property
    def verdict(self) -> str:
        return (self.data / "registration" / "verdict.md").read_text()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    pytest.importorskip("emoji")
    clean_environment(monkeypatch)
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path)
    params, data = made.params(), made.data
    ingest.run(for_step(params, "ingest"), data / "records")
    autoencoder.run(for_step(params, "autoencoder"), data / "records", data / "autoencoder")
    encode.run(for_step(params, "encode"), data / "records", data / "autoencoder", data / "encoded")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    return made


def latentflow(*arguments: str) -> str:
    """A command as a person types it, in the project's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "latentflow.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def aliases(client: MlflowClient) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def test_the_story(project: Project) -> None:
    # The first model has nobody to be compared with.
    project.make("first", "train.steps=60")
    first = project.register("first")
    assert (first.version, first.alias, first.status) == ("1", "champion", "passed")
    client = store.connect()

    # One that was hardly trained is measured to be worse: it is kept as evidence, with the reasons.
    project.make("worse", "train.steps=4")
    with pytest.raises(RefusedError, match="refuses version 2 of 'tiny'"):
        project.register("worse", "register.refused=fail")
    worse = project.register("worse")
    assert (worse.version, worse.alias, worse.status, worse.champion) == ("2", "", "failed", "1")
    assert aliases(client) == {"champion": "1"}
    assert "heldout_loss: worse by more than" in project.verdict
    version = client.get_model_version(NAME, "2")
    assert version.tags[marks.STATUS] == "failed"
    assert version.tags[marks.REASONS].startswith("heldout_loss: worse by more than")
    assert "Gate: refused against version 1." in version.description
    page = (project.data / "registration" / "comparison.html").read_text()
    assert "Same prompt, same seed" in page

    # A better one, judged with other seeds: so is the champion, pulled from the registry, once.
    project.make("better", "train.steps=300", "evaluate.seed=100")
    better = project.register("better", "evaluate.seed=100")
    assert (better.version, better.alias, better.status, better.champion) == ("3", "challenger", "passed", "1")
    judged = client.get_model_version(NAME, "1").tags[marks.JUDGED]
    experiment = [store.experiment_id(client)]
    assert len(client.search_runs(experiment, f"tags.`{marks.JUDGED}` = '{judged}'")) == 2
    assert project.register("better", "evaluate.seed=100") == better
    assert "`latentflow promote models:/tiny/3`" in project.verdict
    assert "@champion: version 1 -> version 3" in latentflow("promote", "models:/tiny/3")
    assert aliases(client) == {"champion": "3", "previous": "1"}

    # It turns out to be worse at what matters.
    assert "@champion: version 3 -> version 1" in latentflow("rollback", NAME, "--reason", "hearts look like stars")
    assert aliases(client) == {"champion": "1", "previous": "3"}
    assert client.get_model_version(NAME, "3").tags["latentflow.retired_because"] == "rollback: hearts look like stars"

    # Serving: what stands behind the alias is what draws.
    pulled = pulling.pull_pinned(f"models:/{NAME}@champion")
    assert pulled.address == "models:/tiny/1"
    command = ["latentflow.cli", "serve", f"models:/{NAME}@champion", "--device", "cpu"]
    with running(command, project.root, project.root / "served") as (address, _):
        served = Served(address, Model(pulled, device="cpu"))
        status, answer = served.ask(dataframe_records=[{"prompt": "red heart"}], params={"seed": 4})
        assert status == 200, answer
        difference = decoded(answer["predictions"][0]["image"]).astype(int) - served.expected("red heart", 4)
        assert abs(difference).max() <= 2  # The server draws in another number of threads.

    # Where it comes from, and what has changed here since.
    (project.root / "params.yaml").write_text(yaml.safe_dump(project.params("train.steps=90").model_dump(mode="json")))
    told = latentflow("lineage", f"models:/{NAME}@champion")
    records = json.loads((project.data / "records" / "manifest.json").read_text())["digest"]
    for part in ("models:/tiny/1 @champion", f"records {records[:12]}", "train.steps: 60 -> 90", "code of commit"):
        assert part in told
    assert json.loads(latentflow("lineage", f"models:/{NAME}/3", "--json"))["model"]["status"] == "passed"

    # Two who promote at once: one after the other, each with a reason.
    before = len(plans())
    told_both = go([start("2", "a test"), start("3", "another test")])
    assert all(text.startswith("changed") for text in told_both)
    assert_one_after_the_other(before + 2)
