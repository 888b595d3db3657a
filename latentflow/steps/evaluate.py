"""evaluate: draws through the saved pipeline, compares with the real pictures, and says so in numbers and pictures."""

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflow.data.places import read_manifest
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, copy_tree_or_file, digest_folder, digest_model, write_json, write_text
from latentflow.manifest import FILE, EncodedManifest, EvaluationManifest, ModelManifest, RecordsManifest, fingerprint
from latentflow.params import EvaluateInputs, EvaluateParams
from latentflow.workspace import work_folder

if TYPE_CHECKING:
    from latentflow.data.records import RecordSet
    from latentflow.evaluation.judge import Findings, Heldout
    from latentflow.evaluation.leads import Leads
    from latentflow.evaluation.plan import Plan

VERSION = 3
PIPELINE, GENERATION = "pipeline", "generation.json"
METRICS, PROTOCOL, GALLERY, REPORT = "metrics.json", "protocol.json", "gallery.png", "report.html"
PLOT, RANKS, UNITS = "plots/heldout_loss_by_sigma.csv", "ranks.csv", "units.csv"
PICTURES, PICTURES_LIST = "gallery.safetensors", "gallery.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Subject:
    """The model that is judged: a diffusers folder, its digest, and the encoded set it learnt from ("": unknown)."""

    pipeline: Path
    digest: str
    encoded: str = ""

    @classmethod
    def trained(cls, folder: Path, manifest: ModelManifest) -> "_Subject":
        """What `train` wrote."""
        return cls(folder / PIPELINE, manifest.digest, manifest.inputs.get("encoded", ""))


@dataclass(frozen=True)
class _Sources:
    """The model and what it is judged against, with what the manifests say."""

    subject: _Subject
    encoded_places: tuple[Path | str, ...]
    records_folder: Path
    encoded: EncodedManifest
    records: RecordsManifest

    @property
    def digests(self) -> dict[str, str]:
        return {"model": self.subject.digest, "encoded": self.encoded.digest, "records": self.records.digest}


def run(
    inputs: EvaluateInputs,
    model: Path,
    encoded: Path | str,
    records: Path,
    out: Path,
    force_rerun: str = "",
    parts: Sequence[Path | str] = (),
) -> EvaluationManifest:
    """Judges a model; an evaluation that was made before with these parameters and inputs is not drawn again.

    Raises LatentflowError before any drawing when inputs are missing or do not belong together. Without MLflow the
    results are on disk all the same, with an empty run id. ``encoded`` is a folder or an fsspec URL; its shards may
    also lie in ``parts``.
    """
    manifest = ModelManifest.read(model)
    sources = _open(_Subject.trained(model, manifest), (encoded, *parts), records)

    def record(judged: EvaluationManifest, results: Path) -> str:
        return _record(inputs, model, manifest, sources, judged, results)

    return _judge(inputs, sources, out, force_rerun, record)


def judge_folder(
    params: EvaluateParams,
    model: Path,
    encoded: Path | str,
    records: Path,
    out: Path,
    parts: Sequence[Path | str] = (),
    digest: str = "",
) -> EvaluationManifest:
    """Judges any model by the same code and writes the same folder as `run`, but tells MLflow nothing.

    ``model`` is what `train` wrote or a plain pipeline folder, such as one that was pulled from the registry; the
    sampler, steps and guidance with which it ships (generation.json) take the place of those in ``params``.
    ``digest`` is the model's, where the caller knows it; otherwise a manifest says it, or the folder's content.
    """
    if (model / FILE).is_file():
        subject = _Subject.trained(model, ModelManifest.read(model))
    else:
        subject = _Subject(model, digest or digest_folder(model))
    sources = _open(subject, (encoded, *parts), records)
    return _judge(EvaluateInputs(evaluate=_as_shipped(params, subject.pipeline)), sources, out)


def _as_shipped(params: EvaluateParams, pipeline: Path) -> EvaluateParams:
    """The parameters with the sampler, steps and guidance that the folder's generation.json names."""
    shipped = _generation(pipeline)
    return params.model_copy(
        update={name: shipped[name] for name in ("sampler", "steps", "guidance") if name in shipped}
    )


def _generation(pipeline: Path) -> dict[str, Any]:
    path = pipeline / GENERATION
    if not path.is_file():
        raise LatentflowError(
            f"{pipeline} holds no {GENERATION}: give the output folder of `latentflow train`, or a pipeline folder "
            "that latentflow packaged."
        )
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return saved


def _open(subject: _Subject, places: tuple[Path | str, ...], records: Path) -> _Sources:
    """Reads the manifests and refuses folders that were not made from one another."""
    encoded = places[0]
    sources = _Sources(subject, places, records, read_manifest(encoded), RecordsManifest.read(records))
    if sources.encoded.inputs.get("records", sources.records.digest) != sources.records.digest:
        raise LatentflowError(f"{encoded} was not made from {records}: run `latentflow encode` again.")
    drawn = _generation(subject.pipeline)
    if (side := sources.encoded.resolution) != drawn["height"] or side != drawn["width"]:
        raise LatentflowError(
            f"{subject.pipeline} draws {drawn['width']}x{drawn['height']} px pictures, {encoded} holds {side} px ones: "
            "give the encoded set that the model was trained on."
        )
    return sources


def _judge(
    inputs: EvaluateInputs,
    sources: _Sources,
    out: Path,
    force_rerun: str = "",
    record: Callable[[EvaluationManifest, Path], str] = lambda *_: "",
) -> EvaluationManifest:
    """The evaluation from the work store or drawn now, told to ``record``, which returns a run id, and copied out."""
    weights = _weights(inputs.evaluate)
    digests = sources.digests | {f"weights.{name}": digest for name, digest in weights.items()}
    key = fingerprint("evaluate", VERSION, inputs, digests, force_rerun)
    with work_folder("evaluate", key) as work:
        results = work / "results"
        if (results / FILE).is_file():
            log.info("this evaluation is in the work store; nothing is drawn again")
        else:
            findings, record_set = _evaluate(inputs.evaluate, sources, weights)
            with atomic_folder(results) as folder:
                _write(folder, findings, record_set, sources, inputs.evaluate)
                EvaluationManifest(
                    digest=findings.digest,
                    fingerprint=key,
                    inputs=digests,
                    mlflow_run_id="",
                    metrics=findings.metrics,
                ).write(folder)
        manifest = EvaluationManifest.read(results)
        manifest = manifest.model_copy(update={"mlflow_run_id": record(manifest, results)})
        with atomic_folder(out) as folder:
            copy_tree_or_file(results, folder)
            manifest.write(folder)
    return manifest


def _weights(params: EvaluateParams) -> dict[str, str]:
    """What stands for each given network in the fingerprint and the protocol: a folder's content, or a hub id."""
    return {name: digest_model(given) for name, given in params.weights if given}


def _evaluate(params: EvaluateParams, sources: _Sources, weights: dict[str, str]) -> "tuple[Findings, RecordSet]":
    from latentflow.data.records import RecordSet
    from latentflow.evaluation.caveats import caveats
    from latentflow.evaluation.drawing import Artist, Settings
    from latentflow.evaluation.judge import Case, judge
    from latentflow.evaluation.plan import Plan
    from latentflow.evaluation.spaces import Networks

    pipeline = sources.subject.pipeline
    settings = Settings.read(pipeline, params.sampler, params.steps, params.guidance)
    record_set = RecordSet.open(sources.records_folder)
    plan = Plan.make(record_set.table, params)
    leads = _leads(sources, plan)
    if leads and plan.free_prompts:
        log.info("a prompt by itself has no image that would lead the model, so evaluate.gallery_prompts are not drawn")
        plan = replace(plan, free_prompts=[])
    _check(plan, params, sources.records_folder)
    _check_dials(pipeline, params)
    networks = Networks.load(params.weights)
    heldout, doubts = _heldout(sources, record_set, params)
    case = Case(Artist(pipeline, settings, leads), plan, record_set, heldout, networks, weights, params, VERSION)
    if settings.call.get("num_frames", 1) > 1:
        doubts = [*doubts, "Of clips only the first frame is drawn and compared; the held-out loss is of whole clips."]
    findings = judge(case)
    for doubt in doubts:
        log.warning("%s: %s", pipeline, doubt)
    return replace(findings, warnings=[*doubts, *caveats(findings)]), record_set


def _leads(sources: _Sources, plan: "Plan") -> "Leads | None":
    """The images of the plan's records, where the model is led by them."""
    from latentflow.data.encoded import EncodedSet
    from latentflow.denoisers.families import family_of
    from latentflow.evaluation.leads import Leads

    if not (led_by := family_of(sources.subject.pipeline).led_by):
        return None
    encoded = EncodedSet.open(sources.encoded_places[0], sources.encoded_places[1:])
    return Leads.find(led_by, encoded, {request.record for request in plan.asked})


def _check_dials(pipeline: Path, params: EvaluateParams) -> None:
    """Refuses a sampler and numbers of steps that the pipeline cannot be drawn with."""
    from latentflow.denoisers.families import family_of
    from latentflow.denoisers.schedulers import check_sampler
    from latentflow.registry.pyfunc_model import fewest_steps

    family = family_of(pipeline)
    if family.led_by_frame:
        raise LatentflowError(
            f"{pipeline}: a {family.pipeline_class} draws from a first frame too, and evaluation draws from captions "
            "alone; go by the held-out loss and the sample grids of train."
        )
    check_sampler(family, params.sampler)
    least = fewest_steps(pipeline)
    if min([params.steps, *params.grid.steps]) < least:
        raise LatentflowError(
            f"this model's pipeline draws in at least {least} steps, and evaluate.steps is {params.steps} with "
            f"evaluate.grid.steps {params.grid.steps}: raise them."
        )


def _check(plan: "Plan", params: EvaluateParams, records: Path) -> None:
    if len(plan.train.records) < 2:
        raise LatentflowError(
            f"evaluation needs at least 2 distinct training captions, found {len(plan.train.records)} in {records} "
            f"with evaluate.captions {params.captions}: raise it, or add records."
        )
    if not plan.test.records:
        raise LatentflowError(f"{records} holds no test records: raise ingest.test_fraction and run ingest again.")
    if (found := plan.train_records) < params.captions:
        log.warning("evaluate.captions is %d, but there are only %d training records", params.captions, found)


def _heldout(sources: _Sources, records: "RecordSet", params: EvaluateParams) -> "tuple[Heldout | None, list[str]]":
    """The held-out loss, and doubts about it; it is quick, and a model that diverged is not worth drawing with."""
    from latentflow import denoisers
    from latentflow.data.encoded import EncodedSet
    from latentflow.devices import best_device
    from latentflow.evaluation.heldout import heldout_groups, heldout_ids, heldout_loss, heldout_sigmas
    from latentflow.evaluation.judge import Heldout
    from latentflow.evaluation.kinship import foreign

    device, subject = best_device(), sources.subject
    split = EncodedSet.open(sources.encoded_places[0], sources.encoded_places[1:]).split("test")
    doubts = []
    if subject.encoded and subject.encoded != sources.encoded.digest:
        doubts = ["The model was trained on another encoded set: it may have seen the held-out captions."]
    unproven = subject.encoded != sources.encoded.digest and len(split)
    if unproven and (reason := foreign(subject.pipeline, split, sources.encoded, records)):
        return None, [*doubts, f"The held-out loss is not measured: {reason}."]
    denoiser = denoisers.load(subject.pipeline)
    denoiser.model.to(device)
    groups, sigmas = heldout_groups(split, device), heldout_sigmas(denoiser.definition)
    loss = heldout_loss(denoiser.predict, groups, denoiser.definition, sigmas, params.seed, params.batch_size)
    if not math.isfinite(loss.mean):
        raise LatentflowError(
            f"{subject.pipeline}: the held-out loss is {loss.mean}, so training diverged: train again with a lower "
            "train.learning_rate."
        )
    return Heldout(loss, heldout_ids(split)), doubts


def _write(folder: Path, findings: "Findings", records: "RecordSet", sources: _Sources, params: EvaluateParams) -> None:
    from latentflow.evaluation import exhibits, gallery, report, units
    from latentflow.evaluation.caveats import not_measured

    units.write_units(folder, findings.units)
    exhibits.write_pictures(folder, findings)
    write_json(folder / METRICS, findings.metrics)
    write_json(folder / PROTOCOL, findings.protocol.to_json())
    write_text(folder / PLOT, _loss_csv(findings))
    write_text(folder / RANKS, _ranks_csv(findings, records))
    top5 = [100 * asked.retrieval.top(5).mean for asked in (findings.train, findings.test)]
    subtitle = (
        f"{findings.protocol.how}   ·   right one among the five nearest: {top5[0]:.0f} % of training captions, "
        f"{top5[1]:.0f} % of held-out captions"
    )
    show = exhibits.Exhibits(findings, records)
    gallery.sheet("What the model draws", subtitle, show.gallery).save(folder / GALLERY, optimize=True)
    manifest = sources.records
    credit = f"Real pictures: {manifest.source}, {manifest.license}. {manifest.credit} Written by latentflow."
    source = report.Source("latentflow: evaluation", sources.subject.digest, credit, not_measured(params.weights))
    write_text(folder / REPORT, report.render(findings, show, source))


def _loss_csv(findings: "Findings") -> str:
    """One line per σ; only the head where the loss was not measured."""
    levels = [] if findings.heldout is None else findings.heldout.loss.by_sigma
    rows = [(r.sigma, r.mean, r.mean - r.half_width, r.mean + r.half_width) for r in levels]
    return _csv([("sigma", "loss", "low", "high"), *rows])


def _ranks_csv(findings: "Findings", records: "RecordSet") -> str:
    """Every drawn picture that was looked up, so that two models can be compared caption by caption."""
    rows: list[tuple[object, ...]] = [("split", "id", "caption", "seed", "rank", "nearest_id")]
    for asked in (findings.train, findings.test):
        ranks, nearest = asked.retrieval.rank.tolist(), asked.retrieval.nearest.tolist()
        for row, record in enumerate(asked.records):
            for number in range(asked.captions.seeds):
                found = records.table[nearest[row][number]].id
                seed = asked.captions.seed(row, number)
                rows.append((asked.split, record.id, record.caption, seed, ranks[row][number], found))
    return _csv(rows)


def _csv(rows: "list[tuple[object, ...]]") -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _record(
    inputs: EvaluateInputs,
    model: Path,
    trained: ModelManifest,
    sources: _Sources,
    manifest: EvaluationManifest,
    results: Path,
) -> str:
    """Logs to the evaluation's child run, found again by its fingerprint; returns its id, "" without MLflow."""
    from latentflow.registry import journal
    from latentflow.registry.lineage import flat_params
    from latentflow.registry.tracking import evaluation_run

    metrics_file = model / METRICS
    figures = json.loads(metrics_file.read_text(encoding="utf-8")) if metrics_file.is_file() else {}
    kept = results.parent / journal.NAME
    with evaluation_run(trained, manifest.fingerprint, flat_params(inputs), figures, kept) as run:
        run.log_dataset("records", manifest.inputs["records"], sources.records.source, "evaluation")
        run.log_metrics(manifest.metrics)
        # Files of one name replace each other, so a run that was cut short here is completed.
        for name in (GALLERY, REPORT, PROTOCOL, RANKS, UNITS, PICTURES, PICTURES_LIST):
            run.log_artifact(results / name)
        return run.id
