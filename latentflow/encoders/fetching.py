"""The autoencoder's folder on this machine, wherever it lies."""

from pathlib import Path

from filelock import FileLock

from latentflow.data.remote import RemoteFolder, local_folder
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, digest_folder
from latentflow.manifest import FILE, AutoencoderManifest
from latentflow.workspace import work_place


def autoencoder_folder(place: Path | str) -> Path:
    """A folder that `latentflow autoencoder` wrote; one behind a URL is brought to the work store, once.

    Raises LatentflowError where there is none, or its weights are not the ones that its manifest names.
    """
    if (folder := local_folder(place)) is not None:
        return folder
    remote = RemoteFolder(str(place))
    try:
        manifest = AutoencoderManifest.parse(remote.read(FILE), f"{remote}/{FILE}")
    except FileNotFoundError:
        raise LatentflowError(
            f"{remote} holds no {FILE}: upload the whole folder that `latentflow autoencoder` wrote."
        ) from None
    folder = work_place("fetched", manifest.digest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The processes of a node ask for it at the same time.
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _fetch(remote, manifest, folder)
    return folder


def _fetch(remote: RemoteFolder, manifest: AutoencoderManifest, folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        for name in remote.names():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            remote.fetch(name, path)
        if (found := digest_folder(temporary / "vae")) != manifest.weights:
            raise LatentflowError(
                f"{remote}/vae is not the autoencoder that its {FILE} names (digest {found}, expected "
                f"{manifest.weights}); upload the whole folder that `latentflow autoencoder` wrote."
            )
