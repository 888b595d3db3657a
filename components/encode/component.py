"""The encode step as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def encode(
    params: dict[str, Any],
    records: dsl.Input[dsl.Dataset],
    autoencoder: dsl.Input[dsl.Model],
    encoded: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    force_rerun: str = "",
) -> None:
    """Turns pictures into latents and captions into embeddings, once, with frozen encoders.

    Args:
        params: The ``encode`` section, as prerequisites emits it.
        records: The record set that ingest wrote.
        autoencoder: The autoencoder that the autoencoder step wrote.
        force_rerun: Any text; another text than last time does the work again.

    Returns:
        encoded: Safetensors shards with latents and text embeddings, and their ``manifest.json``.
        metrics: Encoded records and captions that were cut.
    """
    import json
    from pathlib import Path

    from latentflow.params import EncodeInputs, parse
    from latentflow.steps import encode as step

    inputs = parse(EncodeInputs, params, "encode")
    out = Path(encoded.path)
    manifest = step.run(inputs, Path(records.path), Path(autoencoder.path), out, force_rerun=force_rerun)

    encoded.metadata.update(digest=manifest.digest, fingerprint=manifest.fingerprint)
    for name, value in json.loads((out / "metrics.json").read_text()).items():
        metrics.log_metric(name, value)
