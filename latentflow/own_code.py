"""Code of the user's own that is named as ``module:name``: where it lies, and the digest of its source.

It travels with models that need it, so it imports nothing but what travels with it.
"""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

from latentflow.errors import LatentflowError


def module_path(name: str) -> Path | None:
    """Where the code of ``module:name`` lies: its file, or the folder of its package; None for a name of ours.

    Raises LatentflowError where it is no Python source.
    """
    module, colon, _ = name.partition(":")
    if not colon:
        return None
    spec = find_spec(module.split(".")[0])
    origin = Path(spec.origin) if spec and spec.origin else None
    if origin is None or origin.suffix != ".py":
        raise LatentflowError(f"{name}: {module} is no Python source, which could be copied and compared.")
    return origin.parent if origin.name == "__init__.py" else origin


def code_digest(name: str) -> str:
    """The sha256 of the source of ``module:name``, all of a package's files with their names.

    Raises LatentflowError where it is no Python source.
    """
    path = module_path(name)
    assert path
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    digests = {
        file.relative_to(path.parent).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
