"""The evaluate step as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def evaluate(
    params: dict[str, Any],
    model: dsl.Input[dsl.Model],
    encoded: dsl.Input[dsl.Dataset],
    shards: dsl.Input[list[dsl.Dataset]],
    records: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
    force_rerun: str = "",
) -> None:
    """Draws pictures through the pipeline that train wrote and measures them against the real ones.

    Args:
        params: The ``evaluate`` section, as prerequisites emits it.
        model: The model that train wrote.
        encoded: The encoded set that merge wrote, for the held-out loss.
        shards: All parts that encode wrote.
        records: The record set, for the real pictures.
        force_rerun: Any text; another text than last time does the work again.

    Returns:
        evaluation: ``metrics.json``, ``gallery.png``, ``report.html``, ``manifest.json``.
        metrics: Retrieval, distances, held-out loss and seconds per picture.
        summary: The evaluation's MLflow run and digests.
        report: Gallery and curves in one page that needs nothing else.
    """
    from pathlib import Path

    from latentflow import kubeflow_ui
    from latentflow.params import EvaluateInputs, parse
    from latentflow.steps import evaluate as step

    inputs = parse(EvaluateInputs, params, "evaluate")
    out, parts = Path(evaluation.path), [one.metadata.get("url") or one.path for one in shards]
    manifest = step.run(inputs, Path(model.path), Path(encoded.path), Path(records.path), out, force_rerun, parts)
    kubeflow_ui.show(manifest, evaluation, summary, metrics)
    kubeflow_ui.show_page(out / "report.html", report)
