"""The register step as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def register(
    params: dict[str, Any],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    encoded: dsl.Input[dsl.Dataset],
    shards: dsl.Input[list[dsl.Dataset]],
    records: dsl.Input[dsl.Dataset],
    registration: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
    force_rerun: str = "",
) -> None:
    """Puts the model with its evaluation into the MLflow registry, if the gate lets it; never cached.

    The same model and evaluation give the same version, so a repeated run uploads nothing.

    Args:
        params: The ``register`` section, as prerequisites emits it.
        model: The model that train wrote.
        evaluation: The evaluation that evaluate wrote.
        encoded: The encoded set, on which the champion is judged too if it was not yet.
        shards: All parts that encode wrote.
        records: The record set, likewise.
        force_rerun: Any text; it is part of the fingerprint.

    Returns:
        registration: ``manifest.json`` with name, version and alias; the gate's verdict.
        summary: Which version it became, how to draw with it, and the verdict on each rule.
        report: The model beside the champion: same seeds, loss by σ, figures.
    """
    from pathlib import Path

    from latentflow import kubeflow_ui
    from latentflow.params import RegisterInputs, parse
    from latentflow.steps import register as step

    inputs = parse(RegisterInputs, params, "register")
    folders = Path(model.path), Path(evaluation.path), Path(registration.path)
    judged_on = encoded.metadata.get("url") or encoded.path, Path(records.path)
    parts = [one.metadata.get("url") or one.path for one in shards]
    manifest = step.run(inputs, *folders, force_rerun, *judged_on, parts)
    registration.metadata.update(model=f"models:/{manifest.name}/{manifest.version}", alias=manifest.alias)
    kubeflow_ui.show(manifest, registration, summary)
    kubeflow_ui.show_page(folders[-1] / step.COMPARISON, report)
