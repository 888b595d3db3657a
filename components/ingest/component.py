"""The ingest step as a Kubeflow component."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def ingest(
    params: dict[str, Any],
    records: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
    revision: str = "",
    force_rerun: str = "",
) -> None:
    """Reads a source of captioned pictures and writes checked records, split by a hash of their ids.

    What cannot be used is put into a quarantine with its reason.

    Args:
        params: The ``ingest`` section, as prerequisites emits it.
        revision: What the source held when prerequisites looked; another content is ingested again by it.
        force_rerun: Any text; another text than last time does the work again.

    Returns:
        records: The record set: ``records.parquet``, ``media/``, ``quarantine.jsonl``, ``duplicates.jsonl``.
        metrics: Records per split, how many were refused and how many repeat another.
        summary: Source, revision, licence and credit of the data, and the counts.
        report: Samples, histograms, what was refused and duplicates in one page that needs nothing else.
    """
    import logging
    from pathlib import Path

    from latentflow import kubeflow_ui
    from latentflow.params import IngestInputs, parse
    from latentflow.steps import ingest as step

    out, log = Path(records.path), logging.getLogger("latentflow.ingest")
    manifest = step.run(parse(IngestInputs, params, "ingest"), out, force_rerun=force_rerun)
    if revision and manifest.revision != revision:
        log.warning("the source changed since prerequisites: it was %s and is %s", revision, manifest.revision)
    records.metadata["revision"] = manifest.revision
    kubeflow_ui.show(manifest, records, summary, metrics)
    kubeflow_ui.show_page(out / "report.html", report)
