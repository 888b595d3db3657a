"""Prints what latentflow and the given extras need, one requirement a line: ``requirements.py pyproject.toml a,b``."""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The requirements of the project and of its ``extras``, sorted; an extra that it lacks raises KeyError."""
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return sorted({requirement for group in wanted for requirement in group})


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path(sys.argv[1]), sys.argv[2].split(","))) + "\n")
