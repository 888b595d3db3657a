"""What dvc.yaml and dvc.lock say, read as the YAML that they are: stages' code, and the data's digests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

LOCK, STAGES = "dvc.lock", "dvc.yaml"


def data_digests(project: Path, stage: str = "") -> dict[str, str]:
    """DVC's md5 of every output in dvc.lock, by path; with ``stage`` only of what that stage reads. {} without DVC."""
    outs = {
        str(out["path"]): str(out["md5"])
        for locked in _stages(project / LOCK).values()
        for out in locked.get("outs", [])
        if "md5" in out
    }
    if not stage:
        return outs
    read = {dep for dep in _stages(project / STAGES).get(stage, {}).get("deps", []) if isinstance(dep, str)}
    return {path: md5 for path, md5 in outs.items() if path in read}


def code_of_stages(project: Path) -> dict[str, list[str]]:
    """For every stage of dvc.yaml the files and folders of code that it depends on; {} without DVC."""
    data = set(data_digests(project)) | set(_outs(project))
    found = {}
    for name, stage in _stages(project / STAGES).items():
        deps = [dep for dep in stage.get("deps", []) if isinstance(dep, str)]
        found[name] = [dep for dep in deps if dep not in data]
    return found


def _outs(project: Path) -> Iterator[str]:
    for stage in _stages(project / STAGES).values():
        for out in stage.get("outs", []):
            yield out if isinstance(out, str) else next(iter(out))


def _stages(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:  # dvc.lock in the middle of a merge: nothing can be said.
        return {}
    return dict(content.get("stages") or {}) if isinstance(content, dict) else {}
