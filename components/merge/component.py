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
    force_rerun: str = "",
) -> None:
    """Makes one encoded set of all parts by writing its manifest and index; no shard is copied.

    Args:
        params: The ``encode`` section, as prerequisites emits it.
        records: The record set that ingest wrote.
        autoencoder: The autoencoder that the autoencoder step wrote.
        shards: All parts that encode wrote.
        force_rerun: The token with which the parts were encoded.

    Returns:
        encoded: ``manifest.json`` and ``index.parquet``; the shards stay where the parts wrote them.
        metrics: Encoded records and captions that were cut.
    """
    import json
    from pathlib import Path

    from latentflow.params import EncodeInputs, parse
    from latentflow.steps import encode as step

    inputs = parse(EncodeInputs, params, "encode")
    out, parts = Path(encoded.path), [Path(one.path) for one in shards]
    manifest = step.merge(inputs, Path(records.path), Path(autoencoder.path), out, parts, force_rerun)

    encoded.metadata.update(digest=manifest.digest, fingerprint=manifest.fingerprint)
    for name, value in json.loads((out / "metrics.json").read_text()).items():
        metrics.log_metric(name, value)
