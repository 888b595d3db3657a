"""The code that a pipeline folder brings along where diffusers alone cannot draw with it."""

import shutil
from pathlib import Path

import latentflow
from latentflow.own_code import module_path

CODE = "code"
_OURS = (
    "__init__.py",
    "diffusion",
    "errors.py",
    "own_code.py",
    "own_denoiser.py",
    "own_pipeline.py",
    "scheduler.py",
)


def carry_code(folder: Path, name: str) -> None:
    """Writes ``code/``: our scheduler and pipeline with the theory under them, and the module of the user's own.

    ``name`` is that of a definition or a denoiser's class. What is ours is always all there, so that the folders of two
    models do for both in one process.
    """
    package = Path(latentflow.__file__).parent
    for ours in _OURS:
        _copy(package / ours, folder / CODE / "latentflow" / ours)
    if path := module_path(name):
        _copy(path, folder / CODE / path.name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"), dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
