"""adopt: an encoded set that lies in a place all pods reach becomes the input of a training; no shard is copied."""

import logging
from pathlib import Path

from latentflow.data.places import read_manifest
from latentflow.data.shared import AUTOENCODER
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, copy_tree_or_file, write_json
from latentflow.manifest import AutoencoderManifest, EncodedManifest

log = logging.getLogger(__name__)


def run(encoded: str, autoencoder: str, encoded_out: Path, autoencoder_out: Path, digest: str = "") -> EncodedManifest:
    """Writes the set's manifest to ``encoded_out`` and a copy of its autoencoder to ``autoencoder_out``.

    ``encoded`` and ``autoencoder`` are folders or fsspec URLs; without the second it is looked for within the first.
    Raises LatentflowError when they do not belong together or the set has not the ``digest`` that was asked for.
    """
    from latentflow.encoders.fetching import autoencoder_folder

    manifest = read_manifest(encoded)
    if digest and digest != manifest.digest:
        raise LatentflowError(f"{encoded} has the digest {manifest.digest}, but {digest} was asked for.")
    place = autoencoder or f"{encoded.rstrip('/')}/{AUTOENCODER}"
    folder = autoencoder_folder(place)
    if (found := AutoencoderManifest.read(folder).digest) != manifest.inputs["autoencoder"]:
        raise LatentflowError(
            f"{place} (digest {found[:12]}) is not the autoencoder with which {encoded} was encoded "
            f"({manifest.inputs['autoencoder'][:12]}): give that one."
        )
    with atomic_folder(autoencoder_out) as temporary:
        copy_tree_or_file(folder, temporary)
    with atomic_folder(encoded_out) as temporary:
        manifest.write(temporary)
        write_json(temporary / "metrics.json", {"records": sum(manifest.counts.values()), **manifest.counts})
    log.info("%s: %d records, digest %s", encoded, sum(manifest.counts.values()), manifest.digest)
    return manifest
