"""An encoded set that exists already as a Kubeflow component."""

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def adopt(
    encoded_url: str,
    autoencoder_url: str,
    encoded: dsl.Output[dsl.Dataset],
    autoencoder: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    encoded_digest: str = "",
) -> None:
    """Takes an encoded set and its autoencoder from where an earlier run left them; the shards are not copied.

    Args:
        encoded_url: The set: a bucket's URL or a folder on a shared volume, as a run with ``storage`` leaves it.
        autoencoder_url: The autoencoder with which it was encoded, likewise.
        encoded_digest: The digest that the set must have; another one than last time is looked at anew.

    Returns:
        encoded: The set's manifest, and its URL in the metadata.
        autoencoder: A copy of the autoencoder.
        metrics: Encoded records, in all and per split.
        summary: Records, shards and shapes, with the digests.
    """
    from pathlib import Path

    from latentflow import kubeflow_ui
    from latentflow.steps import adopt as step

    folders = Path(encoded.path), Path(autoencoder.path)
    manifest = step.run(encoded_url, autoencoder_url, *folders, encoded_digest)
    encoded.metadata["url"] = encoded_url
    kubeflow_ui.show(manifest, encoded, summary, metrics)
