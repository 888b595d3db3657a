"""What the Kubeflow UI shows of a finished step: a table of metrics, a summary, a page, and artifacts' metadata."""

import json
from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any, Protocol

from latentflow.manifest import (
    AutoencoderManifest,
    EncodedManifest,
    EvaluationManifest,
    Manifest,
    ModelManifest,
    RecordsManifest,
    RegistrationManifest,
)

MAX_PAGE = 2_000_000


class Artifact(Protocol):
    """An output of a KFP component."""

    path: str
    metadata: dict[str, Any]


class Metrics(Protocol):
    """An output of type ``system.Metrics``."""

    def log_metric(self, metric: str, value: float) -> None: ...


def show(manifest: Manifest, artifact: Artifact, summary: Artifact, metrics: Metrics | None = None) -> None:
    """Fills a step's outputs from the folder that it wrote to ``artifact.path``."""
    links = _links(manifest)
    artifact.metadata.update(digest=manifest.digest, fingerprint=manifest.fingerprint, **links)
    if metrics is not None:
        figures = (Path(artifact.path) / "metrics.json").read_text(encoding="utf-8")
        for name, value in json.loads(figures).items():
            metrics.log_metric(name, value)
    shown = {**facts(manifest), **links, "digest": manifest.digest, "fingerprint": manifest.fingerprint}
    verdict = Path(artifact.path) / "verdict.md"
    more = f"\n{verdict.read_text(encoding='utf-8')}" if verdict.is_file() else ""
    Path(summary.path).write_text(markdown(manifest.step, shown) + more, encoding="utf-8")


def show_page(page: Path, report: Artifact) -> None:
    """Hands a self-contained HTML page on; for one that is missing, or too large for the UI, a line that says so."""
    if not page.is_file():
        text = "<p>There is nothing to compare with yet.</p>"
    elif (size := page.stat().st_size) > MAX_PAGE:
        text = f"<p>The report has {size:,} bytes, too many for the UI: it is {page.name} in the artifact.</p>"
    else:
        text = page.read_text(encoding="utf-8")
    Path(report.path).write_text(text, encoding="utf-8")


def markdown(title: str, rows: Mapping[str, str]) -> str:
    """A heading and a table; what is empty is left out."""
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value]
    return "\n".join([f"# {title}", "", "| | |", "| --- | --- |", *lines]) + "\n"


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def _links(manifest: Manifest) -> dict[str, str]:
    """The id and the page of the MLflow run that belongs to the step."""
    run_id = getattr(manifest, "mlflow_run_id", "")
    if not run_id:
        return {}
    from latentflow.registry.store import run_page

    links = {"mlflow_run_id": run_id, "mlflow_url": run_page(run_id)}
    return {name: value for name, value in links.items() if value}


@singledispatch
def facts(manifest: Manifest) -> dict[str, str]:  # noqa: ARG001  (what is known of every step is in the head)
    """What a person would look for first, by name."""
    return {}


@facts.register
def _(manifest: RecordsManifest) -> dict[str, str]:
    found = manifest.duplicates
    return {
        "source": manifest.source,
        "revision": manifest.revision,
        "licence": manifest.license,
        "credit": manifest.credit,
        "records": ", ".join(f"{count} {split}" for split, count in manifest.counts.items()),
        "refused": f"{manifest.quarantined} (reasons in quarantine.jsonl)",
        "duplicates": f"{found.exact} exact, {found.near} near, {found.dropped} left out",
    }


@facts.register
def _(manifest: AutoencoderManifest) -> dict[str, str]:
    return {
        "autoencoder": "trained on the records" if manifest.trained else "given, checked",
        "pictures": f"{manifest.resolution} px",
        "weights": manifest.weights,
    }


@facts.register
def _(manifest: EncodedManifest) -> dict[str, str]:
    return {
        "records": ", ".join(f"{count} {split}" for split, count in manifest.counts.items()),
        "shards": str(len(manifest.shards)),
        "latents": " x ".join(map(str, manifest.latent_shape)),
        "text": f"{manifest.max_tokens} tokens of width {manifest.text_width}",
    }


@facts.register
def _(manifest: ModelManifest) -> dict[str, str]:
    return {"pipeline": manifest.pipeline_class, "pictures": f"{manifest.resolution} px"}


@facts.register
def _(manifest: EvaluationManifest) -> dict[str, str]:
    return {"figures": str(len(manifest.metrics))}


@facts.register
def _(manifest: RegistrationManifest) -> dict[str, str]:
    uri = f"models:/{manifest.name}/{manifest.version}"
    return {
        "model": uri,
        "alias": manifest.alias,
        "gate": manifest.status,
        "compared with": f"version {manifest.champion}" if manifest.champion else "",
        "draw with it": f'`latentflow generate --model {uri} --prompt "red heart" --out heart.png`',
    }
