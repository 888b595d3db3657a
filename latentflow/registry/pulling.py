"""From the registry to a folder, and from a folder to pictures."""

import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from latentflow.errors import LatentflowError, RegistryError
from latentflow.files import digest_json
from latentflow.registry import store
from latentflow.registry.store import connect
from latentflow.workspace import store as work_store
from latentflow.workspace import tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.tracking import MlflowClient
    from PIL.Image import Image

_PREFIX = "models:/"
_PIPELINE = "artifacts/pipeline"


class ModelUri(NamedTuple):
    """`models:/<name>@<alias>` or `models:/<name>/<version>`; the other of the two is ""."""

    name: str
    alias: str
    version: str


def parse(model_uri: str) -> ModelUri:
    """Reads a model URI; anything else is a LatentflowError that shows the two forms."""
    if found := re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model_uri):
        return ModelUri(found[1], found[2] or "", found[3] or "")
    raise LatentflowError(
        f"{model_uri!r} is neither a model folder nor models:/<name>@<alias> nor models:/<name>/<version>."
    )


class Pulled(NamedTuple):
    """A pipeline's folder and the address that it will always have: models:/<name>/<version>, or the folder given."""

    address: str
    folder: Path


def pull(model_uri: str, out: Path | None = None) -> Path:
    """The diffusers folder of a model: downloaded to ``out``, or kept in the work store when none is given.

    ``model_uri`` may also be a folder (a diffusers folder, `latentflow train`'s output, or an MLflow model): it
    is returned as it is. Raises RegistryError with what there is when the name, alias or version is not.
    """
    return pull_pinned(model_uri, out).folder


def pull_pinned(model_uri: str, out: Path | None = None) -> Pulled:
    """Like ``pull``, with the version that an alias was on: whoever needs the model twice asks for that one."""
    if not model_uri.startswith(_PREFIX):
        return Pulled(model_uri, _local(Path(model_uri)))
    wanted = parse(model_uri)
    if out is not None:
        _refuse_foreign(out)
    client = connect(create=False)
    with store.mlflow_errors(f"give {model_uri}"):
        version = find_version(client, wanted)
        return Pulled(f"{_PREFIX}{version.name}/{version.version}", fetch(client, version, out))


def fetch(client: "MlflowClient", version: "ModelVersion", out: Path | None = None) -> Path:
    """The diffusers folder of a version: downloaded to ``out``, or kept in the work store when none is given."""
    target = out or work_store() / "pulled" / _folder_name(version)
    if out is not None or not (target / "model_index.json").is_file():
        _download(client, version, target)
    return target


def draw(
    folder: Path,
    prompts: list[str],
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    device: str = "auto",
    trust_code: bool = False,
) -> list["Image"]:
    """One picture per prompt through the packaged model's own code; what is None is the model's default.

    ``trust_code`` lets a model with a definition of its owner's import it from the code that it brings along.
    """
    from latentflow.registry import pyfunc_model

    asked = {"seed": seed, "steps": steps, "guidance": guidance, "height": height, "width": width}
    try:
        settings = pyfunc_model.settings_from(pyfunc_model.generation_defaults(folder), asked)
        return pyfunc_model.draw(pyfunc_model.open_pipeline(folder, device, trust_code=trust_code), prompts, settings)
    except FileNotFoundError as error:
        raise LatentflowError(f"{folder} is not a model folder of latentflow: {error.filename} is missing.") from error
    except ValueError as error:
        hint = ""
        if (folder / "code").is_dir() and not trust_code:
            hint = f" It brings code of its own in {folder / 'code'}: read it, then give --trust-code."
        raise LatentflowError(f"{folder} cannot draw: {error}.{hint}") from error


def _local(folder: Path) -> Path:
    for place in (folder, folder / "pipeline", folder / _PIPELINE):
        if (place / "model_index.json").is_file():
            return place
    if folder.exists():
        raise LatentflowError(f"{folder} holds no diffusers pipeline (no model_index.json there, nor in pipeline/).")
    raise LatentflowError(f"There is no folder {folder}; a model in the registry is models:/<name>@<alias>.")


def _refuse_foreign(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "model_index.json").is_file())):
        raise LatentflowError(f"{out} exists and is not a pulled model: give a new or an empty folder.")


def find_model(client: "MlflowClient", name: str) -> "RegisteredModel":
    """The registered model; RegistryError with the names that there are when it is not."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if not store.is_missing(error):
            raise
        names = [model.name for model in client.search_registered_models(max_results=20)]
        raise RegistryError(
            f"There is no model {name!r} in {store.shown(tracking_uri())}; it has: {', '.join(names) or 'none'}."
        ) from error


def find_version(client: "MlflowClient", wanted: ModelUri) -> "ModelVersion":
    """The version that an address names now; RegistryError with what there is when it names none."""
    from mlflow.exceptions import MlflowException

    aliases = find_model(client, wanted.name).aliases
    if wanted.alias and wanted.alias not in aliases:
        raise RegistryError(
            f"Model {wanted.name!r} has no alias {wanted.alias!r}; {_what_there_is(client, wanted.name)}."
        )
    number = str(aliases[wanted.alias]) if wanted.alias else wanted.version
    try:
        return client.get_model_version(wanted.name, number)
    except MlflowException as error:
        if not store.is_missing(error):
            raise
        raise RegistryError(
            f"Model {wanted.name!r} has no version {number}; {_what_there_is(client, wanted.name)}."
        ) from error


def _what_there_is(client: "MlflowClient", name: str) -> str:
    aliases = client.get_registered_model(name).aliases
    numbers = sorted(
        (int(version.version) for version in client.search_model_versions(f"name = '{name}'")), reverse=True
    )
    by_alias = ", ".join(f"@{alias} (version {number})" for alias, number in sorted(aliases.items())) or "none"
    shown = ", ".join(str(number) for number in numbers[:20]) + (", ..." if len(numbers) > 20 else "")
    return f"its aliases: {by_alias}; its versions: {shown or 'none'}"


def _folder_name(version: "ModelVersion") -> str:
    """A name of its own for every version of every store, also after a registry was deleted and made anew."""
    mark = digest_json([tracking_uri(), str(version.source), version.creation_timestamp])
    return f"{version.name}-{version.version}-{mark[:12]}"


def _download(client: "MlflowClient", version: "ModelVersion", target: Path) -> None:
    from mlflow.artifacts import download_artifacts

    from latentflow.files import atomic_folder

    source = client.get_model_version_download_uri(version.name, version.version)
    if source.startswith(_PREFIX):
        source = client.get_logged_model(source.removeprefix(_PREFIX)).artifact_location
    with atomic_folder(target) as folder, tempfile.TemporaryDirectory(dir=folder) as temporary:
        bar = "true" if sys.stderr.isatty() else "false"
        with store.environment("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", bar):
            place = f"{source.rstrip('/')}/{_PIPELINE}"
            got = download_artifacts(place, dst_path=temporary, tracking_uri=tracking_uri())
        for path in Path(got).iterdir():
            path.rename(folder / path.name)
        if not (folder / "model_index.json").is_file():
            raise RegistryError(
                f"Version {version.version} of {version.name!r} was not packaged by latentflow: no {_PIPELINE}."
            )
