"""A pipeline that diffusers saved, in a folder or on the hub: which parts it has, and where they lie here."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentflow.errors import LatentflowError
from latentflow.files import digest_folder, digest_json

INDEX = "model_index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SMALL = (".json", ".txt", ".model", ".jinja")
# Copies of the same weights in other types, or of other frameworks.
_COPIES = ("*.fp16.*", "*.bf16.*", "*.fp32.*", "*.non_ema.*", "*flax*", "*openvino*")
_HUB_ID = r"[\w.-]+/[\w.-]+(@[\w./-]+)?"


@dataclass(frozen=True)
class Checkpoint:
    """``folder`` holds model_index.json and the parts that were asked for; ``index`` is what the file says."""

    folder: Path
    index: dict[str, Any]

    @property
    def kind(self) -> str:
        """The pipeline's class."""
        return str(self.index["_class_name"])

    @property
    def parts(self) -> list[str]:
        """The subfolders that the pipeline is made of."""
        return [name for name, made in self.index.items() if isinstance(made, list) and made[-1] is not None]

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part. Raises LatentflowError where there is none."""
        path = self.folder / part / "config.json"
        try:
            config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LatentflowError(f"{path} cannot be read ({error}); save the pipeline again.") from error
        return config

    def digest(self, parts: Sequence[str]) -> str:
        """The content of these parts, and of what the index says besides."""
        flags = {name: value for name, value in self.index.items() if not isinstance(value, list) and name[0] != "_"}
        folders = {name: digest_folder(self.folder / name) for name in parts}
        return digest_json({"pipeline": self.kind, "flags": flags, "parts": folders})


def find(name: str, setting: str, parts: Sequence[str] = (), weights: bool = True) -> Checkpoint | None:
    """The pipeline of that folder or hub id (owner/name, owner/name@revision), ``parts`` of it on this machine.

    None where it is something else, such as a single model. Without ``parts`` all are brought here, and without
    ``weights`` only their configs and tokenizers. Raises LatentflowError that names ``setting`` where the hub cannot be
    reached or refuses, or weights are pickled.
    """
    folder = Path(name)
    if folder.is_dir():
        places = (folder, folder / "pipeline")  # The second in what `latentflow train` writes.
        found = next((place for place in places if (place / INDEX).is_file()), None)
    else:
        found = _download(name, setting, [INDEX]) if re.fullmatch(_HUB_ID, name) else None
    if found is None or not (found / INDEX).is_file():
        return None
    try:
        checkpoint = Checkpoint(found, json.loads((found / INDEX).read_text(encoding="utf-8")))
    except ValueError as error:
        raise LatentflowError(f"{setting}: {found / INDEX} is not JSON ({error}).") from error
    wanted = [part for part in parts or checkpoint.parts if part in checkpoint.parts]
    on_hub = not folder.is_dir()
    if on_hub:
        endings = (*_SMALL, *((".safetensors",) if weights else ()))
        _download(name, setting, [f"{part}/*{ending}" for part in wanted for ending in endings])
    if weights or not on_hub:
        for part in wanted:
            require_safetensors(found / part, setting)
    return checkpoint


def require_safetensors(folder: Path, setting: str) -> None:
    """Raises LatentflowError for a model folder whose weights are pickled, or that holds none for its config."""
    files = [path.name for path in folder.glob("*") if path.is_file()]
    if "config.json" not in files or any(file.endswith(".safetensors") for file in files):
        return
    pickled = next((file for file in files if file.endswith(PICKLES)), None)
    if pickled is None:
        raise LatentflowError(f"{setting}: {folder} holds no weights; download or save the whole pipeline.")
    raise LatentflowError(
        f"{setting}: {folder / pickled} is a pickle, which can run any code when it is loaded, and only safetensors "
        "are loaded: if you trust it, load the pipeline with use_safetensors=False and write it anew with "
        "save_pretrained(folder, safe_serialization=True)."
    )


def require_whole(report: Mapping[str, Any], what: str) -> None:
    """Raises LatentflowError that begins with ``what`` where a loading report names missing or foreign weights."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := report[kind]:
            raise LatentflowError(
                f"{what} is not what its config.json says: {kind.replace('_', ' ')} "
                f"{', '.join(map(str, sorted(names, key=str)[:3]))}; download or save it again."
            )


def _download(name: str, setting: str, patterns: Sequence[str]) -> Path:
    """Files of a hub repository. Raises LatentflowError with what to do where they cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=list(patterns), ignore_patterns=list(_COPIES)
            )
        )
    except GatedRepoError as error:
        raise LatentflowError(
            f"{setting}: {repository} is gated: accept its terms on its page of the hub, and put a token of that "
            "account into the environment as HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise LatentflowError(f"{setting}: {repository} has no revision {revision}.") from error
    except RepositoryNotFoundError as error:
        raise LatentflowError(
            f"{setting}: there is no folder {name}, and the hub shows no model of that name; check the spelling, or "
            "set HF_TOKEN if it is private."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise LatentflowError(
            f"{setting}: {name} is no folder here, and the hub cannot be reached ({reason}); check the network or "
            "HF_ENDPOINT, or give the folder of a downloaded pipeline."
        ) from error
