"""The train step on many nodes as a Kubeflow component."""

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
    storage: str,
    options: dict[str, Any],
    num_nodes: int = 2,
    gpus: int = 1,
    shards: dsl.Input[list[dsl.Dataset]] | None = None,
    force_rerun: str = "",
) -> None:
    """Trains what ``train`` trains on many nodes: it starts a Kubeflow Trainer v2 TrainJob and waits for its model.

    It holds no GPU itself and waits without a deadline. Rank 0's log is its log. Tried again, it follows the job that
    it left running; when it is cancelled by SIGTERM, or its pod is removed, the job is removed too. The model is what
    ``train`` makes of the same parameters and data, up to rounding, and lies in the storage afterwards, where the next
    such step finds it.

    Args:
        params: The ``train``, ``model`` and ``diffusion`` sections, as prerequisites emits them.
        encoded: The encoded set that merge wrote.
        autoencoder: The autoencoder whose decoder becomes part of the pipeline.
        image: The image of the job's pods: latentflow with CUDA torch, of this version.
        version: The version of the pipeline package, which the image must have too.
        storage: A bucket's URL, or a folder on a volume that all pods mount, for checkpoints, data and the model.
        options: Options of the cluster, such as ``{"queue": "gpus"}``; docs/distributed.md lists them.
        num_nodes: Pods of the job.
        gpus: Accelerators per pod, one process each; 0 trains on the CPU.
        shards: All parts that encode wrote; none where the encoded set is whole by itself.
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

    from latentflow.cluster.options import JobOptions
    from latentflow.params import TrainInputs, parse
    from latentflow.steps import train_distributed as step
    from latentflow.steps.train import Sources

    inputs, chosen = parse(TrainInputs, params, "train"), parse(JobOptions, options, "options")
    out, nodes = Path(model.path), step.Nodes(image, num_nodes, gpus)
    parts = [one.metadata.get("url") or one.path for one in shards or []]
    sources = Sources(encoded.metadata.get("url") or encoded.path, Path(autoencoder.path), parts)
    manifest = step.run(inputs, sources, storage, nodes, chosen, out, force_rerun)
    kubeflow_ui.show(manifest, model, summary, metrics)
    kubeflow_ui.show_page(out / "report.html", report)
