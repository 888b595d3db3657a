"""The code that a pipeline folder brings along where diffusers alone cannot draw with it."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import latentflow
from latentflow.errors import LatentflowError

CODE = "code"
_OURS = ("__init__.py", "scheduler.py", "diffusion")


def carry_code(folder: Path, definition: str) -> None:
    """Writes ``code/``: our scheduler with the theory under it, and the module of the user's own definition."""
    package = Path(latentflow.__file__).parent
    for name in _OURS:
        _copy(package / name, folder / CODE / "latentflow" / name)
    if path := module_path(definition):
        _copy(path, folder / CODE / path.name)


def module_path(definition: str) -> Path | None:
    """Where the code of a user's own ``module:name`` lies: its file, or the folder of its package; None for ours.

    Raises LatentflowError where it is no Python source.
    """
    module, colon, _ = definition.partition(":")
    if not colon:
        return None
    spec = find_spec(module.split(".")[0])
    origin = Path(spec.origin) if spec and spec.origin else None
    if origin is None or origin.suffix != ".py":
        raise LatentflowError(f"{definition}: {module} is no Python source, which could be copied and compared.")
    return origin.parent if origin.name == "__init__.py" else origin


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"), dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
