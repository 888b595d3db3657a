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
    force_rerun: str = "",
) -> None:
    """Reads a source of captioned pictures and writes checked records, split by a hash of their ids.

    What cannot be used is put into a quarantine with its reason. The source is the embedded emoji set or a
    folder of pictures with ``metadata.jsonl`` or ``metadata.csv``.

    Args:
        params: The ``ingest`` section, as prerequisites emits it.
        force_rerun: Any text; another text than last time does the work again.

    Returns:
        records: The record set: ``records.parquet``, ``media/``, ``quarantine.jsonl``, ``duplicates.jsonl``.
        metrics: Records per split, how many were refused and how many repeat another.
        summary: Source, revision, licence and credit of the data, and the counts.
        report: Samples, histograms, what was refused and duplicates in one page that needs nothing else.
    """
    import json
    import shutil
    from pathlib import Path

    from latentflow.params import IngestInputs, parse
    from latentflow.steps import ingest as step

    out = Path(records.path)
    manifest = step.run(parse(IngestInputs, params, "ingest"), out, force_rerun=force_rerun)

    records.metadata.update(digest=manifest.digest, fingerprint=manifest.fingerprint, revision=manifest.revision)
    for name, value in json.loads((out / "metrics.json").read_text()).items():
        metrics.log_metric(name, value)
    lines = [
        f"# Records of {manifest.source}",
        f"- revision: `{manifest.revision}`",
        f"- digest: `{manifest.digest}`",
        f"- licence: {manifest.license}",
        f"- credit: {manifest.credit}",
        *(f"- {split}: {count}" for split, count in manifest.counts.items()),
        f"- refused: {manifest.quarantined} (reasons in `quarantine.jsonl`)",
        f"- duplicates: {manifest.duplicates.exact} exact, {manifest.duplicates.near} near, "
        f"{manifest.duplicates.dropped} left out",
    ]
    Path(summary.path).write_text("\n".join(lines) + "\n")
    shutil.copyfile(out / "report.html", report.path)
