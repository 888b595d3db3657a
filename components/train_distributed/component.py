"""The train step as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def train_distributed(
    params: dict[str, Any],
    encoded: dsl.Input[dsl.Dataset],
    autoencoder: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
    image: str,
    version: str,
    options: dict[str, Any],
    num_nodes: int = 1,
    gpus: int = 0,
    shards: dsl.Input[list[dsl.Dataset]] | None = None,
    storage: str = "",
    force_rerun: str = "",
) -> None:
    """Trains the text-conditional denoiser by flow matching and writes a complete diffusers pipeline.

    Parameters, losses by step and sample grids go to the model's MLflow run. Checkpoints are kept below ``storage``, or
    in the work store (``LATENTFLOW_STORE``); a run that was killed goes on from the last one when it is still there.
    After SIGTERM the step leaves a checkpoint and exits with code 75, so that a retry goes on.

    Args:
        params: The ``train``, ``model`` and ``diffusion`` sections, as prerequisites emits them.
        encoded: The encoded set that merge wrote.
        autoencoder: The autoencoder whose decoder becomes part of the pipeline.
        image: The image that this runs in, for the model's lineage.
        version: The version of the pipeline package, which the image must have too.
        gpus: GPUs that must be usable here; 0 trains on what there is.
        shards: All parts that encode wrote; none where the encoded set is whole by itself.
        storage: A bucket's URL or a folder on a shared volume, for the checkpoints.
        force_rerun: Any text; another text than last time does the work again.

    Returns:
        model: ``pipeline/`` (a diffusers folder), samples, plots, ``manifest.json``.
        metrics: Training and held-out losses at the end.
        summary: The model's MLflow run and digests.
        report: Loss curves and sample grids in one page that needs nothing else.
    """
    from pathlib import Path

    from latentflow import kubeflow_ui, pod

    pod.begin(image, version)
    pod.require_gpus(gpus)

    from latentflow.params import TrainInputs, parse
    from latentflow.steps import train as step

    inputs = parse(TrainInputs, params, "train")
    out, parts = Path(model.path), [one.metadata.get("url") or one.path for one in shards or []]
    sources = step.Sources(encoded.metadata.get("url") or encoded.path, Path(autoencoder.path), parts)
    manifest = step.run(inputs, sources, out, force_rerun, storage=storage)
    assert manifest, "a component is one process, and the main one"
    kubeflow_ui.show(manifest, model, summary, metrics)
    kubeflow_ui.show_page(out / "report.html", report)
