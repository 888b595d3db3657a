"""From the registry to a folder: what is there is not fetched again, and what broke off goes on."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from latentflow.errors import LatentflowError, RegistryError
from latentflow.files import digest_json
from latentflow.registry import fetching, store
from latentflow.registry.marks import MODEL_DIGEST
from latentflow.registry.store import connect
from latentflow.workspace import store as work_store
from latentflow.workspace import tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.tracking import MlflowClient

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
    """A pipeline's folder and the address that it will always have: models:/<name>/<version>, or the folder given.

    ``digest`` is the model's, "" for a folder; ``fetched`` counts the files that had to be downloaded.
    """

    address: str
    folder: Path
    digest: str = ""
    fetched: int = 0


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
        return _fetched(client, find_version(client, wanted), out)


def fetch(client: "MlflowClient", version: "ModelVersion", out: Path | None = None) -> Path:
    """The diffusers folder of a version: downloaded to ``out``, or kept in the work store when none is given."""
    return _fetched(client, version, out).folder


def _fetched(client: "MlflowClient", version: "ModelVersion", out: Path | None) -> Pulled:
    target = out or work_store() / "pulled" / _folder_name(version)
    fetched = fetching.fetch(f"{_source(client, version)}/{_PIPELINE}", target, _mark(version))
    if not (target / "model_index.json").is_file():
        raise RegistryError(
            f"Version {version.version} of {version.name!r} was not packaged by latentflow: no {_PIPELINE}."
        )
    digest = version.tags.get(MODEL_DIGEST, "")
    return Pulled(f"{_PREFIX}{version.name}/{version.version}", target, digest, fetched)


def package(model_uri: str) -> Path:
    """The whole MLflow model of a version, in the work store. Raises RegistryError with what there is if it is not."""
    client = connect(create=False)
    with store.mlflow_errors(f"give {model_uri}"):
        version = find_version(client, parse(model_uri))
        target = work_store() / "packages" / _folder_name(version)
        fetching.fetch(_source(client, version), target, _mark(version))
    return target


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


def _mark(version: "ModelVersion") -> str:
    """Of its own for every version of every store, also after a registry was deleted and made anew."""
    return digest_json([tracking_uri(), str(version.source), version.creation_timestamp])[:12]


def _folder_name(version: "ModelVersion") -> str:
    return f"{version.name}-{version.version}-{_mark(version)}"


def _source(client: "MlflowClient", version: "ModelVersion") -> str:
    """Where the store keeps the files of a version."""
    source = client.get_model_version_download_uri(version.name, version.version)
    if source.startswith(_PREFIX):
        source = client.get_logged_model(source.removeprefix(_PREFIX)).artifact_location
    return str(source).rstrip("/")
