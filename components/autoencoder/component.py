"""The autoencoder step as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def autoencoder(
    params: dict[str, Any],
    records: dsl.Input[dsl.Dataset],
    autoencoder: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    force_rerun: str = "",
) -> None:
    """Trains the autoencoder that turns pictures into latents, or validates the one that is given.

    Args:
        params: The ``autoencoder`` section, as prerequisites emits it.
        records: The record set that ingest wrote.
        force_rerun: Any text; another text than last time does the work again.

    Returns:
        autoencoder: ``vae/`` (a diffusers AutoencoderKL folder), ``reconstructions.png``, ``manifest.json``.
        metrics: How faithfully held-out pictures are reconstructed.
    """
    import json
    from pathlib import Path

    from latentflow.params import AutoencoderInputs, parse
    from latentflow.steps import autoencoder as step

    inputs = parse(AutoencoderInputs, params, "autoencoder")
    out = Path(autoencoder.path)
    manifest = step.run(inputs, Path(records.path), out, force_rerun=force_rerun)

    autoencoder.metadata.update(digest=manifest.digest, fingerprint=manifest.fingerprint)
    for name, value in json.loads((out / "metrics.json").read_text()).items():
        metrics.log_metric(name, value)
