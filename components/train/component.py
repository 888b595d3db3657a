"""The train step as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-gpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def train(
    params: dict[str, Any],
    encoded: dsl.Input[dsl.Dataset],
    shards: dsl.Input[list[dsl.Dataset]],
    autoencoder: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    force_rerun: str = "",
) -> None:
    """Trains the text-conditional denoiser by flow matching and writes a complete diffusers pipeline.

    Parameters, losses by step and sample grids go to the model's MLflow run. Checkpoints are kept in the work
    store (``LATENTFLOW_STORE``), or below ``LATENTFLOW_CHECKPOINTS`` (a folder or a bucket's URL); a run that was
    killed goes on from the last one when it is still there. After SIGTERM the step leaves a checkpoint and exits
    with code 75, so that a retry goes on.

    Args:
        params: The ``train``, ``model`` and ``diffusion`` sections, as prerequisites emits them.
        encoded: The encoded set that merge wrote.
        shards: All parts that encode wrote.
        autoencoder: The autoencoder whose decoder becomes part of the pipeline.
        force_rerun: Any text; another text than last time does the work again.

    Returns:
        model: ``pipeline/`` (a diffusers folder), samples, plots, ``manifest.json``.
        metrics: Training and held-out losses at the end.
    """
    import json
    from pathlib import Path

    from latentflow.params import TrainInputs, parse
    from latentflow.steps import train as step

    inputs = parse(TrainInputs, params, "train")
    out = Path(model.path)
    sources = step.Sources(Path(encoded.path), Path(autoencoder.path), [Path(one.path) for one in shards])
    manifest = step.run(inputs, sources, out, force_rerun)
    assert manifest, "a component is one process, and the main one"

    model.metadata.update(
        digest=manifest.digest, fingerprint=manifest.fingerprint, mlflow_run_id=manifest.mlflow_run_id
    )
    for name, value in json.loads((out / "metrics.json").read_text()).items():
        metrics.log_metric(name, value)
