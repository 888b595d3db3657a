"""`latentflow lineage`: the chain in words and as JSON, and what a working tree has changed since."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from registry_helpers import INPUTS, NAME, model_manifest, write_evaluation
from typer.testing import CliRunner

from latentflow.cli import app
from latentflow.params import for_step, load
from latentflow.registry import chain, chain_text, drift, dvc_files, lineage, pulling, store
from latentflow.steps import register

PARAMS = Path(__file__).parents[2] / "params.yaml"


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(project: Path) -> Path:
    """A project under git with parameters, one stage of code and data in dvc.lock."""
    (project / "code").mkdir()
    (project / "code" / "train.py").write_text("print('one')\n")
    (project / "params.yaml").write_text(PARAMS.read_text())
    stages = {
        "encode": {"cmd": "encode", "outs": ["data/encoded"]},
        "train": {"cmd": "train", "deps": ["code", "data/encoded"], "outs": [{"data/model": {"persist": True}}]},
    }
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    write_lock(project, "0123.dir")
    git(project, "init", "-q")
    git(project, "add", "code", "params.yaml", "dvc.yaml", "dvc.lock")
    git(project, "commit", "-qm", "begin")
    return project


def write_lock(project: Path, md5: str) -> None:
    outs = [{"path": "data/encoded", "hash": "md5", "md5": md5}]
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"encode": {"outs": outs}}}))


@pytest.fixture
def registered_here(
    repository: Path, model: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Version 1 of what train made in the repository, in a stage of DVC."""
    with monkeypatch.context() as stage:
        stage.setenv("DVC_STAGE", "train")
        known = lineage.lineage_from_environment()
    extra = {"data_source": "emoji", "data_digest": "r" * 64, "digest_encoded": "e" * 64, "fingerprint": "f" * 64}
    told = lineage.with_params(known | extra, lineage.flat_params(for_step(load(PARAMS), "train")))
    model_manifest().model_copy(update={"lineage": told}).write(model)
    register.run(INPUTS, model, evaluation, tmp_path / "registration")
    return repository


def tell(*arguments: str) -> str:
    shown = CliRunner().invoke(app, ["lineage", f"models:/{NAME}@champion", *arguments], catch_exceptions=False)
    assert shown.exit_code == 0
    return shown.stdout


def test_the_tree_of_an_unchanged_project(registered_here: Path) -> None:
    told = tell()
    commit = git(registered_here, "rev-parse", "HEAD")
    for part in (
        f"models:/{NAME}/1 @champion\n├─ model dddddddddddd StableDiffusionPipeline\n",
        "gate: passed",
        f"├─ data emoji\n│  ├─ records {'r' * 12}\n",
        "data/encoded: DVC's md5 0123.dir",
        f"code of commit {commit}\n",
        "DVC stage train",
        "trained from scratch",
        "└─ since then, here: nothing has changed",
    ):
        assert part in told


def test_what_changed_is_told_by_name(registered_here: Path) -> None:
    text = PARAMS.read_text().replace("steps: 1300", "steps: 1500").replace("max_tokens: 12", "max_tokens: 16")
    (registered_here / "params.yaml").write_text(text)
    (registered_here / "code" / "train.py").write_text("print('two')\n")
    git(registered_here, "commit", "-qam", "two")
    (registered_here / "code" / "new.py").touch()
    write_lock(registered_here, "4567.dir")
    (registered_here / "data" / "encoded").mkdir(parents=True)
    (registered_here / "data" / "encoded" / "manifest.json").write_text(json.dumps({"digest": "0" * 64}))
    since = json.loads(tell("--json"))["since"]
    assert since["code"] == {"train": ["code/new.py", "code/train.py"]}
    changed = {change["what"]: (change["then"], change["now"]) for change in since["parameters"]}
    assert changed["train.steps"] == ("1300", "1500")
    assert changed["encode.max_tokens"] == ("12", "16")
    assert {change["what"]: (change["then"], change["now"]) for change in since["data"]} == {
        "data/encoded": ("0123.dir", "4567.dir"),
        "data/encoded/manifest.json": ("e" * 64, "0" * 64),
    }
    told = tell()
    assert "train: code/new.py, code/train.py" in told
    assert "data/encoded: 0123.dir -> 4567.dir" in told


def test_a_clone_without_the_commit_and_a_folder_without_anything(registered_here: Path, tmp_path: Path) -> None:
    clone, bare = tmp_path / "clone", tmp_path / "bare"
    clone.mkdir()
    bare.mkdir()
    git(clone, "init", "-q")
    (clone / "params.yaml").write_text(PARAMS.read_text())
    assert "this clone does not have commit" in tell("--project", str(clone))
    told = tell("--project", str(bare))
    assert "is no git repository" in told
    assert "there is no " in told
    (bare / "params.yaml").write_text("train: []")
    assert "cannot be used" in tell("--project", str(bare))


def test_a_machine_without_git(registered_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "is no git repository" in tell()


def test_a_fine_tuned_model_shows_the_model_it_began_with(registered_here: Path, model: Path, tmp_path: Path) -> None:
    told = model_manifest().lineage | {"parent_model": f"models:/{NAME}/1", "digest_pretrained": "p" * 64}
    model_manifest().model_copy(update={"lineage": told, "digest": "b" * 64}).write(model)
    evaluation = write_evaluation(tmp_path / "tuned", "t" * 64, guidance=4.0, model="b" * 64)
    register.run(INPUTS, model, evaluation, tmp_path / "registration")
    link = chain.chain(store.connect(), pulling.parse(f"models:/{NAME}/2"))
    assert isinstance(link.parent, chain.Link)
    assert (link.parent.address, link.parent.parent) == (f"models:/{NAME}/1", "")
    shown = chain_text.tree(link, drift.drift(link, tmp_path))
    assert f"├─ fine-tuned from\n│  └─ models:/{NAME}/1 @champion\n│     ├─ model dddd" in shown
    store.connect().delete_registered_model_alias(NAME, "champion")
    store.connect().delete_model_version(NAME, "1")
    link = chain.chain(store.connect(), pulling.parse(f"models:/{NAME}/2"))
    assert f"fine-tuned from models:/{NAME}/1, weights pppppppppppp" in chain_text.tree(
        link, drift.drift(link, tmp_path)
    )


def test_dvc_files_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    assert dvc_files.data_digests(tmp_path) == {}
    (tmp_path / "dvc.lock").write_text("<<<<<<< HEAD\nstages: [")
    assert dvc_files.data_digests(tmp_path) == {}
    assert dvc_files.code_of_stages(Path(__file__).parents[2])["register"] == []
    assert "latentflow/training" in dvc_files.code_of_stages(Path(__file__).parents[2])["train"]
