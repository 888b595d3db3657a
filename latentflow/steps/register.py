"""register: the judged model becomes a version in MLflow's registry, once."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.errors import RegistryError
from latentflow.files import atomic_folder, digest_json
from latentflow.manifest import RegistrationManifest, fingerprint
from latentflow.params import RegisterInputs, RegisterParams

if TYPE_CHECKING:
    from latentflow.registry.packaging import Package
    from latentflow.registry.versions import Version

VERSION = 1


def run(
    inputs: RegisterInputs, model: Path, evaluation: Path, out: Path, force_rerun: str = ""
) -> RegistrationManifest:
    """Registers model and evaluation, or finds them registered (then nothing heavy is imported or uploaded).

    Raises RegistryError when the registry fails; it says where the model is and how to register it later.
    """
    from latentflow.registry import glance
    from latentflow.registry.packaging import prepare

    params = inputs.register_
    package = prepare(params.name, model, evaluation)
    digests = {"model": package.model.digest, "evaluation": package.evaluation.digest}
    version = glance.registered(params, package.model.digest, package.evaluation.fingerprint)
    if version is None:
        try:
            version = _register(params, package, model)
        except RegistryError as error:
            raise RegistryError(
                f"{error} The trained model is kept at {model / 'pipeline'}; once MLflow answers, "
                f"register it with `{_command(model, evaluation, out)}`."
            ) from error
    manifest = RegistrationManifest(
        # Which version it became depends on the registry's history; what was registered does not.
        digest=digest_json([params.name, package.model.digest, package.evaluation.fingerprint]),
        fingerprint=fingerprint("register", VERSION, inputs, digests, force_rerun),
        inputs=digests,
        name=version.name,
        version=version.version,
        alias=version.alias,
        mlflow_run_id=version.run_id,
    )
    with atomic_folder(out) as folder:
        manifest.write(folder)
    return manifest


def _register(params: RegisterParams, package: "Package", model: Path) -> "Version":
    from latentflow.registry import store, versions

    client = store.connect()
    with store.mlflow_errors(f"register {params.name!r}"):
        return versions.register(client, params, package, _metrics(model))


def _metrics(model: Path) -> dict[str, float]:
    path = model / "metrics.json"
    return {name: float(value) for name, value in json.loads(path.read_text()).items()} if path.is_file() else {}


def _command(model: Path, evaluation: Path, out: Path) -> str:
    """`latentflow register`, with the folders that are not the default ones."""
    given = {
        "--model": (model, "data/model"),
        "--evaluation": (evaluation, "data/evaluation"),
        "--out": (out, "data/registration"),
    }
    options = [f"{name} {shlex.quote(str(path))}" for name, (path, usual) in given.items() if path != Path(usual)]
    return " ".join(["latentflow register", *options])
