"""The autoencoder step as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def autoencoder(
    params: dict[str, Any],
    records: dsl.Input[dsl.Dataset],
    autoencoder: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
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
        summary: What the autoencoder is, with its digests.
    """
    from pathlib import Path

    from latentflow import kubeflow_ui
    from latentflow.params import AutoencoderInputs, parse
    from latentflow.steps import autoencoder as step

    inputs = parse(AutoencoderInputs, params, "autoencoder")
    manifest = step.run(inputs, Path(records.path), Path(autoencoder.path), force_rerun=force_rerun)
    kubeflow_ui.show(manifest, autoencoder, summary, metrics)
