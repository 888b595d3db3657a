"""The merge of the encode step's parts as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def merge(
    params: dict[str, Any],
    records: dsl.Input[dsl.Dataset],
    autoencoder: dsl.Input[dsl.Model],
    shards: dsl.Input[list[dsl.Dataset]],
    encoded: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    storage: str = "",
    force_rerun: str = "",
) -> None:
    """Makes one encoded set of all parts by writing its manifest and index; no shard is copied.

    Args:
        params: The ``encode`` section, as prerequisites emits it.
        records: The record set that ingest wrote.
        autoencoder: The autoencoder that the autoencoder step wrote.
        shards: All parts that encode wrote.
        storage: Where the parts put their shards, if not into their artifacts.
        force_rerun: The token with which the parts were encoded.

    Returns:
        encoded: ``manifest.json`` and ``index.parquet``; the shards stay where the parts wrote them.
        metrics: Encoded records and captions that were cut.
        summary: Records, shards and shapes, with the digests.
    """
    from pathlib import Path

    from latentflow import kubeflow_ui
    from latentflow.params import EncodeInputs, parse
    from latentflow.steps import encode as step

    inputs = parse(EncodeInputs, params, "encode")
    folders = Path(records.path), Path(autoencoder.path), Path(encoded.path)
    manifest = step.merge(inputs, *folders, [Path(one.path) for one in shards], force_rerun, storage)
    if storage:
        encoded.metadata["url"] = step.shared_place(storage, manifest.fingerprint)
    kubeflow_ui.show(manifest, encoded, summary, metrics)
