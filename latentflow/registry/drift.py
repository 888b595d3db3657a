"""What has changed in a working tree since a model was made: parameters, code by step, data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from latentflow.errors import ParamsError
from latentflow.params import load
from latentflow.registry.chain import Link
from latentflow.registry.dvc_files import code_of_stages, data_digests
from latentflow.registry.lineage import flat_params, flat_text, git

PARAMS = "params.yaml"
STEPS = ("ingest", "autoencoder", "encode", "train", "evaluate")
# Sections that the runs do not hold; the commit's params.yaml does.
_EARLIER = ("ingest", "autoencoder", "encode")
_LENGTH = 6000


@dataclass(frozen=True)
class Change:
    """One thing, as the model saw it and as it is here; "" where it is not there."""

    what: str
    then: str
    now: str


@dataclass(frozen=True)
class Drift:
    """Changes of parameters and data, changed files of code by step, and what could not be found out."""

    parameters: list[Change]
    code: dict[str, list[str]]
    data: list[Change]
    unknown: list[str]

    @property
    def nothing(self) -> bool:
        """Whether nothing is known to have changed."""
        return not (self.parameters or self.code or self.data)


def drift(link: Link, project: Path) -> Drift:
    """Compares the folder of a project with what a version was made of."""
    unknown: list[str] = []
    commit = _commit(link, project, unknown)
    return Drift(
        _parameters(link, project, commit, unknown), _code(project, commit, unknown), _data(link, project), unknown
    )


def _commit(link: Link, project: Path, unknown: list[str]) -> str:
    """The model's commit if this clone has it, else ""; why not is added to ``unknown``."""
    commit = link.code.get("git_commit", "")
    if not commit:
        unknown.append("the model does not say of which commit it is, so nothing can be said about code")
    elif not git(project, "rev-parse", "--is-inside-work-tree"):
        unknown.append(f"{project.resolve()} is no git repository, so nothing can be said about code")
        return ""
    elif git(project, "cat-file", "-t", commit) != "commit":
        unknown.append(f"this clone does not have commit {commit[:12]}: git fetch; then code can be compared")
        return ""
    if commit and link.code.get("git_dirty") == "true":
        unknown.append(f"the model was made with uncommitted changes on top of {commit[:12]}, which nobody kept")
    return commit


def _parameters(link: Link, project: Path, commit: str, unknown: list[str]) -> list[Change]:
    path = project / PARAMS
    if not path.is_file():
        unknown.append(f"there is no {path}, so nothing can be said about parameters")
        return []
    try:
        now = flat_params(load(path))
    except ParamsError as error:
        unknown.append(f"{path} cannot be used, so nothing can be said about parameters: {error}")
        return []
    then = dict(link.parameters)
    if commit and (text := git(project, "show", f"{commit}:./{PARAMS}")):
        # As they are written, for the parameters of then need not be valid now.
        then |= _earlier(text)
        now |= _earlier(path.read_text(encoding="utf-8"))
    sections = {name.partition(".")[0] for name in then}
    mine = {name: value[:_LENGTH] for name, value in now.items() if name.partition(".")[0] in sections}
    return _differences(then, mine)


def _earlier(text: str) -> dict[str, str]:
    """The sections that no run holds, of a params.yaml."""
    written = yaml.safe_load(text) or {}
    return flat_text({section: written[section] for section in _EARLIER if section in written})


def _code(project: Path, commit: str, unknown: list[str]) -> dict[str, list[str]]:
    """Files that the steps rest on and that differ from the commit, committed or not, by step."""
    if not commit:
        return {}
    steps = {step: deps for step, deps in code_of_stages(project).items() if step in STEPS and deps}
    if not steps:
        unknown.append(f"there is no dvc.yaml in {project.resolve()}, which says what code a step rests on")
    changed = {}
    for step, deps in steps.items():
        files = git(project, "diff", "--name-only", "--relative", commit, "--", *deps).splitlines()
        files += git(project, "ls-files", "--others", "--exclude-standard", "--", *deps).splitlines()
        if files:
            changed[step] = sorted(set(files))
    return changed


def _data(link: Link, project: Path) -> list[Change]:
    """What dvc.lock and the folders' manifests say of the data, where the model knows it too."""
    found = [change for change in _differences(link.dvc, data_digests(project)) if change.then]
    then = {"records": link.data.get("digest", ""), **link.digests}
    for name in ("records", "autoencoder", "encoded"):
        path = project / "data" / name / "manifest.json"
        if then.get(name) and path.is_file():
            now = str(json.loads(path.read_text(encoding="utf-8")).get("digest", ""))
            if now != then[name]:
                found.append(Change(f"data/{name}/manifest.json", then[name], now))
    return found


def _differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    names = sorted(then.keys() | now.keys())
    return [Change(name, then.get(name, ""), now.get(name, "")) for name in names if then.get(name) != now.get(name)]
