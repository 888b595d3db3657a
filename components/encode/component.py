"""The encode step as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def encode(
    params: dict[str, Any],
    records: dsl.Input[dsl.Dataset],
    autoencoder: dsl.Input[dsl.Model],
    shards: dsl.Output[dsl.Dataset],
    part: str = "1/1",
    storage: str = "",
    force_rerun: str = "",
) -> None:
    """Turns one part of the pictures into latents and of the captions into embeddings, with frozen encoders.

    What ``storage`` or the work store (``LATENTFLOW_STORE``) holds is not encoded again; a part that was killed goes on
    where it was.

    Args:
        params: The ``encode`` section, as prerequisites emits it.
        records: The record set that ingest wrote.
        autoencoder: The autoencoder that the autoencoder step wrote.
        part: Which part of how many, such as ``2/8``: a share of whole shards.
        storage: A bucket's URL or a folder on a shared volume: the shards go there and travel by their URL.
        force_rerun: Any text; another text than last time does the work again.

    Returns:
        shards: The part's safetensors shards, or with ``storage`` their URL in its metadata; the first part also
            carries the text encoder.
    """
    from pathlib import Path

    from latentflow.params import EncodeInputs, parse
    from latentflow.steps import encode as step

    inputs = parse(EncodeInputs, params, "encode")
    folders = Path(records.path), Path(autoencoder.path), Path(shards.path)
    made = step.run_part(inputs, *folders, step.Part.parse(part), force_rerun, storage)
    shards.metadata.update(part=part, fingerprint=made.fingerprint, shards=len(made.shards))
    if storage:
        shards.metadata["url"] = step.shared_place(storage, made.fingerprint)
