"""The register step as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def register(
    params: dict[str, Any],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
    force_rerun: str = "",
) -> None:
    """Puts the model with its evaluation into the MLflow registry; never cached.

    The same model and evaluation give the same version, so a repeated run uploads nothing.

    Args:
        params: The ``register`` section, as prerequisites emits it.
        model: The model that train wrote.
        evaluation: The evaluation that evaluate wrote.
        force_rerun: Any text; it is part of the fingerprint.

    Returns:
        registration: ``manifest.json`` with name, version and alias.
        summary: Which version it became and how to draw with it.
    """
    from pathlib import Path

    from latentflow import kubeflow_ui
    from latentflow.params import RegisterInputs, parse
    from latentflow.steps import register as step

    inputs = parse(RegisterInputs, params, "register")
    folders = Path(model.path), Path(evaluation.path), Path(registration.path)
    manifest = step.run(inputs, *folders, force_rerun=force_rerun)
    registration.metadata.update(model=f"models:/{manifest.name}/{manifest.version}", alias=manifest.alias)
    kubeflow_ui.show(manifest, registration, summary)
