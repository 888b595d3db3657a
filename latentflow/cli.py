"""The command line: parsing and printing; each step's work is in latentflow.steps."""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentflow import params as parameters
from latentflow.errors import LatentflowError, ParamsError

if TYPE_CHECKING:
    from latentflow.manifest import RegistrationManifest

app = typer.Typer(
    name="latentflow",
    help="Train text-conditional latent diffusion models by flow matching: ingest, autoencoder, encode, train, "
    "evaluate, register; then generate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameters file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override one parameter; repeatable.")
]
Token = Annotated[str, typer.Option(help="Any new text makes the step work again although nothing changed.")]
Records = Annotated[Path, typer.Option(help="Folder that ingest wrote.")]
Autoencoder = Annotated[Path, typer.Option(help="Folder that autoencoder wrote.")]
AutoencoderPlace = Annotated[str, typer.Option(help="Folder that autoencoder wrote, or its URL (s3://...).")]
Encoded = Annotated[str, typer.Option(help="Folder that encode wrote, or its URL (s3://...).")]
Model = Annotated[Path, typer.Option(help="Folder that train wrote.")]
Evaluation = Annotated[Path, typer.Option(help="Folder that evaluate wrote.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; replaced when the step succeeds.")]

_IMAGES, _RECUR, _FOLLOW, _CONNECT = "Images", "Recurring runs", "Following", "Connection"
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
PARAMS = Path("params.yaml")
SERVED = "LATENTFLOW_MODEL"
CHAMPION = "models:/latentflow-emoji@champion"
RECORDS, AUTOENCODER, ENCODED = Path("data/records"), Path("data/autoencoder"), Path("data/encoded")
MODEL, EVALUATION, REGISTRATION = Path("data/model"), Path("data/evaluation"), Path("data/registration")


def _inputs(step: str, file: Path, overrides: list[str] | None) -> Any:
    """The step's own validated sections; a fault in any section ends the command before heavy imports."""
    return parameters.for_step(parameters.load(file, overrides), step)


def _check_together(file: Path, overrides: list[str] | None) -> None:
    """Refuses a VAE, text models and a denoiser that do not fit, as only all sections together can tell."""
    from latentflow.denoisers.preflight import check_together

    check_together(parameters.load(file, overrides))


@app.command()
def ingest(
    params: ParamsFile = PARAMS, overrides: Overrides = None, out: Out = RECORDS, force_rerun: Token = ""
) -> None:
    """Read pictures with captions, refuse what cannot be used, split the rest."""
    inputs = _inputs("ingest", params, overrides)
    from latentflow.steps import ingest as step

    manifest = step.run(inputs, out, force_rerun)
    _done(
        f"{sum(manifest.counts.values())} records in {out} ({manifest.quarantined} refused), "
        f"report in {out / 'report.html'}",
        "latentflow autoencoder",
    )


@app.command()
def autoencoder(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    records: Records = RECORDS,
    out: Out = AUTOENCODER,
    force_rerun: Token = "",
) -> None:
    """Train a VAE on the records, or check the pretrained one that the parameters name."""
    _check_together(params, overrides)
    inputs = _inputs("autoencoder", params, overrides)
    from latentflow.steps import autoencoder as step

    step.run(inputs, records, out, force_rerun)
    _done(f"VAE in {out}, reconstructions in {out / 'reconstructions.png'}", "latentflow encode")


@app.command()
def encode(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    records: Records = RECORDS,
    autoencoder: Autoencoder = AUTOENCODER,
    out: Out = ENCODED,
    force_rerun: Token = "",
    part: Annotated[str, typer.Option(help="Encode only part number/of, e.g. 2/8, into --out.")] = "",
    merge: Annotated[bool, typer.Option("--merge", help="Make a set of encoded parts; moves no data.")] = False,
    parts: Annotated[
        list[Path] | None, typer.Option(help="With --merge: a folder with parts, if not --out; repeat it.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what would be encoded and why.")] = False,
) -> None:
    """Turn records into latents and text embeddings, once; what was encoded before is taken from the work store."""
    _check_together(params, overrides)
    inputs = _inputs("encode", params, overrides)
    from latentflow.steps import encode as step

    if explain:
        typer.echo("\n".join(step.explain(inputs, records, autoencoder, force_rerun)))
        return
    if part:
        made = step.run_part(inputs, records, autoencoder, out, step.Part.parse(part), force_rerun)
        _done(f"{len(made.shards)} shards of part {part} in {out}", "latentflow encode --merge, after the other parts")
        return
    if merge:
        manifest = step.merge(inputs, records, autoencoder, out, parts or [], force_rerun)
    else:
        manifest = step.run(inputs, records, autoencoder, out, force_rerun)
    _done(f"{sum(manifest.counts.values())} records in {len(manifest.shards)} shards in {out}", "latentflow train")


@app.command()
def train(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    sections: Annotated[
        str, typer.Option(help="The train, model and diffusion sections themselves, as YAML, instead of --params.")
    ] = "",
    encoded: Encoded = str(ENCODED),
    parts: Annotated[
        list[str] | None, typer.Option(help="A folder or URL with parts of the encoded set, if not there; repeat it.")
    ] = None,
    autoencoder: AutoencoderPlace = str(AUTOENCODER),
    out: Annotated[
        str, typer.Option(help="Folder to write, or its URL (s3://...); replaced when the step succeeds.")
    ] = str(MODEL),
    force_rerun: Token = "",
    resume_from: Annotated[
        str, typer.Option(help="Go on from this checkpoint (folder or URL); refused if it is of another training.")
    ] = "",
    extend_steps: Annotated[
        bool, typer.Option("--extend-steps", help="With --resume-from: train.steps may be another than it was.")
    ] = False,
) -> None:
    """Train the denoiser by flow matching; a killed run goes on from its last checkpoint.

    After SIGTERM it leaves a checkpoint and exits with code 75. Several GPUs or nodes: start it by torchrun, as
    `torchrun --nproc-per-node 8 -m latentflow.cli train`.
    """
    if sections and overrides:
        raise ParamsError("--set changes what --params names; --sections holds every value itself.")
    inputs = (
        parameters.parse_text(parameters.TrainInputs, sections, "--sections")
        if sections
        else _inputs("train", params, overrides)
    )
    if extend_steps and not resume_from:
        raise LatentflowError("--extend-steps says something about --resume-from; give both.")
    from latentflow.steps import train as step

    resume = step.Resume(resume_from, extend_steps) if resume_from else None
    if step.run(inputs, step.Sources(encoded, autoencoder, parts or ()), out, force_rerun, resume):
        _done(f"diffusers pipeline in {out}/pipeline, curves and samples in {out}/report.html", "latentflow evaluate")


@app.command()
def trainjob(
    image: Annotated[str, typer.Option(help="The image of latentflow with CUDA torch that the pods run.")],
    storage: Annotated[
        str, typer.Option(help="Bucket's URL, or folder on a volume of all pods; for checkpoints and the model.")
    ],
    encoded: Annotated[str, typer.Option(help="What encode wrote, where every pod finds it.")],
    autoencoder: Annotated[str, typer.Option(help="What autoencoder wrote, where every pod finds it.")],
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(help="Pods.", min=1)] = 2,
    gpus: Annotated[int, typer.Option(help="GPUs per pod, one process each; 0 trains on the CPU.", min=0)] = 1,
    options: Annotated[
        Path | None,
        typer.Option(help="YAML file with options of the cluster (docs/distributed.md lists them).", exists=True),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the job, and of the model's folder in the storage.")] = (
        "latentflow-train"
    ),
) -> None:
    """Print a Kubeflow TrainJob that trains on many nodes, for kubectl apply; needs the extra distributed."""
    inputs = _inputs("train", params, overrides)
    from latentflow.cluster.options import JobOptions
    from latentflow.cluster.trainjob import JobPlan, Work, as_yaml

    given = options.read_text(encoding="utf-8") if options else "{}"
    chosen = parameters.parse_text(JobOptions, given, str(options))
    storage = storage.rstrip("/")
    work = Work(inputs, encoded, (), autoencoder, storage, f"{storage}/models/{name}")
    typer.echo(as_yaml(JobPlan(name, work, image, nodes, gpus, chosen)), nl=False)


@app.command()
def average(
    length: Annotated[
        float, typer.Option(help="Relative length of the average: of 0.08, about the last 8 % of the run.")
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write; replaced when the command succeeds.")],
    model: Model = MODEL,
) -> None:
    """Make a model of another average of the weights, from the averages that training kept (train.ema_lengths)."""
    from latentflow.steps import average as step

    step.run(model, length, out)
    _done(f"diffusers pipeline in {out / 'pipeline'}", f"latentflow evaluate --model {out}")


@app.command()
def evaluate(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    model: Model = MODEL,
    encoded: Encoded = str(ENCODED),
    records: Records = RECORDS,
    out: Out = EVALUATION,
    force_rerun: Token = "",
) -> None:
    """Draw with the trained pipeline and judge it against the real pictures."""
    inputs = _inputs("evaluate", params, overrides)
    from latentflow.steps import evaluate as step

    step.run(inputs, model, encoded, records, out, force_rerun)
    _done(f"gallery in {out / 'gallery.png'}, report in {out / 'report.html'}", "latentflow register")


@app.command()
def register(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    model: Model = MODEL,
    evaluation: Evaluation = EVALUATION,
    encoded: Annotated[
        str, typer.Option(help="Encoded set on which the champion is judged too; data/encoded if that is there.")
    ] = "",
    records: Annotated[
        Path | None, typer.Option(help="Records of the same; data/records if that is there.", show_default=False)
    ] = None,
    out: Out = REGISTRATION,
    force_rerun: Token = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if the gate refuses the model; register.refused=fail.")
    ] = False,
) -> None:
    """Register the model with its evaluation in MLflow, and say whether it may replace the champion.

    The same pair gives the same version. A model that the gate refuses is kept as a version without an alias.
    """
    inputs = _inputs("register", params, [*(overrides or []), *(["register.refused=fail"] if strict else [])])
    from latentflow.steps import register as step

    encoded_set = encoded or (str(ENCODED) if ENCODED.is_dir() else None)
    real = records or (RECORDS if RECORDS.is_dir() else None)
    manifest = step.run(inputs, model, evaluation, out, force_rerun, encoded_set, real)
    _show(manifest, evaluation, out)


Reason = Annotated[str, typer.Option(help="Why; it is written on the versions.")]


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS.")],
    reason: Reason = "",
    params: ParamsFile = PARAMS,
) -> None:
    """Make a version the champion, and the champion the previous one.

    Without --reason only a version that passed the gate against the champion of now.
    """
    from latentflow.registry import promotion, pulling, store

    wanted = pulling.parse(model)
    with store.mlflow_errors(f"promote {model}"):
        change = promotion.promote(store.connect(create=False), wanted, reason, _aliases(params))
    typer.echo(change)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    reason: Annotated[str, typer.Option(help="What is wrong with the champion; it is written on the versions.")],
    params: ParamsFile = PARAMS,
) -> None:
    """Exchange the champion and the previous champion."""
    from latentflow.registry import promotion, store

    with store.mlflow_errors(f"roll back {name}"):
        change = promotion.rollback(store.connect(create=False), name, reason, _aliases(params))
    typer.echo(change)


@app.command()
def lineage(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    project: Annotated[Path, typer.Option(help="Folder of the project that is compared.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print where a model comes from, back to data and code, and what has changed since in the working tree."""
    from latentflow.registry import chain, chain_text, drift, pulling, store

    wanted = pulling.parse(model)
    with store.mlflow_errors(f"tell where {model} comes from"):
        link = chain.chain(store.connect(create=False), wanted)
    since = drift.drift(link, project)
    typer.echo(chain_text.as_json(link, since) if as_json else chain_text.tree(link, since))


def _aliases(params: Path) -> Any:
    """What the project calls its aliases; outside of a project they have their usual names."""
    from latentflow.registry.promotion import Aliases

    return Aliases.of(parameters.load(params).register_) if params.is_file() else Aliases()


@app.command()
def deliver() -> None:
    """Tell MLflow what it could not be told while trainings and evaluations ran; `register` does so for its own."""
    from latentflow.registry import delivering

    folders = delivering.waiting()
    left = delivering.deliver(folders)
    if left:
        raise LatentflowError(f"MLflow was not told everything: {len(left)} things wait on; see the warning above.")
    typer.echo(f"MLflow has what waited of {len(folders)} runs." if folders else "Nothing waits to be told to MLflow.")


@app.command()
def generate(
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; repeatable.")] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help="Prompts, one per line; or .jsonl of prompt, seed, negative_prompt, image."),
    ] = None,
    again: Annotated[
        Path | None, typer.Option(help="Draw a PNG of an earlier run once more; options given here change it.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or a pipeline folder.", show_default=CHAMPION),
    ] = None,
    out: Annotated[
        str, typer.Option(help="A PNG, in which several pictures become a grid; or a folder/ for one file each.")
    ] = "picture.png",
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same picture; 0 if left out.", min=0)
    ] = None,
    seeds: Annotated[str, typer.Option(help="Every prompt with each of these, e.g. 0-7 or 0,3,8-11.")] = "",
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    image: Annotated[str, typer.Option(help="Control or reference picture, for a model that is led by one.")] = "",
    steps: Annotated[int | None, typer.Option(help="Sampler steps; the model's own if left out.", min=1)] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale, 1 is none; the model's own if left out.", min=1)
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="euler, heun, dpm_solver_2m, unipc or ancestral; the model's own if left out.")
    ] = None,
    size: Annotated[
        str, typer.Option(help="Pixels, as 64 or, width x height, 96x64; the model's own if left out.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto is a GPU where there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Import a definition or denoiser that a model brings along.")
    ] = False,
) -> None:
    """Draw pictures with a registered model; every PNG says how it was drawn."""
    from latentflow.generation import asked
    from latentflow.generation.orders import Dials, parse_size

    dials = (parse_size(size) if size else Dials()).over(Dials(steps=steps, guidance=guidance, sampler=sampler))
    wanted = asked.Asked(tuple(prompt or ()), prompts_file, again, seed, seeds, negative, image)
    request = asked.read(wanted, dials, model, CHAMPION)
    from latentflow.generation import generate as work

    result = work.run(request, out, work.Means(device, dtype, trust_code))
    there = result.asked - result.drawn
    number = f"{result.drawn} picture{'' if result.drawn == 1 else 's'}"
    typer.echo(f"{number}{f' ({there} more were there)' if there else ''} -> {result.out}")


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    out: Annotated[Path, typer.Option(help="Folder to write the diffusers pipeline to.")] = Path("model"),
) -> None:
    """Download a registered model as a plain diffusers folder; a download that broke off goes on."""
    from latentflow.registry import pulling

    found = pulling.pull_pinned(model, out)
    there = "was already" if model.startswith("models:/") and not found.fetched else "is"
    typer.echo(f"{found.address} {there} in {found.folder}")
    typer.echo(f"next: DiffusionPipeline.from_pretrained({str(found.folder)!r}), or")
    typer.echo(f'      latentflow generate --model {shlex.quote(str(found.folder))} --prompt "red heart"')


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION or an MLflow model's folder.", envvar=SERVED),
    ],
    host: Annotated[str, typer.Option(help="Who may ask: 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8080,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto is a GPU where there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    timeout: Annotated[int, typer.Option(help="Seconds after which a request is given up.", min=1)] = 300,
) -> None:
    """Answer over HTTP as `mlflow models serve` does, with the model loaded before the port opens."""
    from latentflow.registry import serving

    serving.serve(serving.find(model), host, port, device, dtype, timeout)


@app.command()
def studio(
    model: Annotated[str, typer.Option(help="Name of the registered model that is shown first.")] = "",
    host: Annotated[str, typer.Option(help="Who may see the page: 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the page.", min=1, max=65535)] = 7860,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto is a GPU where there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Open a page on which registered models draw: a prompt, two versions side by side, their figures and lineage."""
    from importlib.util import find_spec

    if find_spec("nicegui") is None:
        raise LatentflowError("The page needs NiceGUI: pip install 'latentflow[studio]'.")
    from latentflow.studio import catalogue

    catalogue.names()
    from latentflow.studio import page
    from latentflow.studio.easel import Easel

    typer.echo(f"latentflow studio: http://{host}:{port} (Ctrl-C ends it)")
    page.serve(Easel(device, dtype), model, host, port)


@app.command()
def submit(
    params: Annotated[
        Path | None,
        typer.Option("--params", help="A whole params.yaml; else the checkout's (fine_tune: its own)."),
    ] = None,
    overrides: Overrides = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME=VALUE", help="An input that is no parameter (force_rerun); repeatable."),
    ] = None,
    pipeline: Annotated[str, typer.Option(help="training, the whole pipeline, or fine_tune.")] = "training",
    cluster: Annotated[Path | None, typer.Option(help="YAML of the cluster's options to compile with.")] = None,
    image_registry: Annotated[
        str, typer.Option(help="Where both images are, as registry.example/team.", rich_help_panel=_IMAGES)
    ] = "",
    image_cpu: Annotated[str, typer.Option(help="The image of the CPU steps.", rich_help_panel=_IMAGES)] = "",
    image_gpu: Annotated[str, typer.Option(help="The image of the GPU steps.", rich_help_panel=_IMAGES)] = "",
    experiment: Annotated[str, typer.Option(help="Kubeflow experiment; made if it is not there.")] = "",
    run_name: Annotated[str, typer.Option(help="Name of the run; left out, pipeline, version and time.")] = "",
    service_account: Annotated[str, typer.Option(help="Kubernetes service account of the run's pods.")] = "",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not take any task's result from the cache.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent and send nothing.")] = False,
    cron: Annotated[
        str, typer.Option(help="A recurring run by six fields, seconds first: '0 0 3 * * *'.", rich_help_panel=_RECUR)
    ] = "",
    interval: Annotated[
        str, typer.Option(help="A recurring run every so often: 12h, 1d.", rich_help_panel=_RECUR)
    ] = "",
    max_concurrency: Annotated[
        int, typer.Option(min=1, max=10, help="Runs of it at the same time.", rich_help_panel=_RECUR)
    ] = 1,
    enabled: Annotated[
        bool, typer.Option("--enabled/--disabled", help="Whether it starts runs yet.", rich_help_panel=_RECUR)
    ] = True,
    catch_up: Annotated[
        bool, typer.Option("--catch-up", help="Make up for starts that were missed.", rich_help_panel=_RECUR)
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Wait for the run's end.", rich_help_panel=_FOLLOW)
    ] = True,
    attach: Annotated[
        str, typer.Option(metavar="RUN_ID", help="Send nothing; follow this run.", rich_help_panel=_FOLLOW)
    ] = "",
    timeout: Annotated[str, typer.Option(help="Stop following after so long: 90m, 2h.", rich_help_panel=_FOLLOW)] = "",
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.", rich_help_panel=_FOLLOW)] = 5.0,
    host: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of Kubeflow.", rich_help_panel=_CONNECT)
    ] = "",
    namespace: Annotated[
        str, typer.Option(help="Your namespace, where several share one.", rich_help_panel=_CONNECT)
    ] = "",
    existing_token: Annotated[
        str,
        typer.Option(envvar="KF_PIPELINES_TOKEN", help="A token; better in the variable.", rich_help_panel=_CONNECT),
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token, read anew for every request.", rich_help_panel=_CONNECT),
    ] = None,
    cookies: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_COOKIES", help="Cookies of a login.", rich_help_panel=_CONNECT)
    ] = "",
    ui_host: Annotated[
        str,
        typer.Option(
            envvar="KF_PIPELINES_UI_ENDPOINT", help="Address for links, if another.", rich_help_panel=_CONNECT
        ),
    ] = "",
    kube_context: Annotated[
        str, typer.Option(help="Context of kubectl, without --host.", rich_help_panel=_CONNECT)
    ] = "",
    proxy: Annotated[str, typer.Option(help="HTTP proxy.", rich_help_panel=_CONNECT)] = "",
    ssl_ca_cert: Annotated[str, typer.Option(help="File of certificates to trust.", rich_help_panel=_CONNECT)] = "",
    verify_ssl: Annotated[
        bool, typer.Option("--verify-ssl/--no-verify-ssl", help="Check certificates.", rich_help_panel=_CONNECT)
    ] = True,
) -> None:
    """Run the Kubeflow pipeline of this checkout: compile, upload, start, follow. The page is docs/submit.md."""
    _need_checkout()
    from rich.console import Console

    from pipelines import submit as submission
    from pipelines.submission.connection import Connection
    from pipelines.submission.following import Watch
    from pipelines.submission.plan import Images, Request
    from pipelines.submission.schedule import Schedule, seconds

    connection = Connection(
        host, namespace, existing_token, token_file, cookies, ui_host, kube_context, proxy, ssl_ca_cert, verify_ssl
    )
    watch = Watch(poll, seconds(timeout, "--timeout") if timeout else None)
    if attach:
        raise typer.Exit(submission.attach(attach, connection, watch, Console()))
    every = seconds(interval, "--interval") if interval else 0
    schedule = Schedule(cron, every, max_concurrency, enabled, catch_up) if cron or interval else None
    request = Request(
        pipeline=pipeline,
        params=params,
        settings=overrides or (),
        fields=fields or (),
        cluster=cluster,
        images=Images(image_registry, image_cpu, image_gpu),
        cache=not no_cache,
        experiment=experiment,
        run_name=run_name,
        service_account=service_account,
        schedule=schedule,
    )
    code = submission.submit(request, connection, watch if follow else None, dry_run, Console())
    raise typer.Exit(code)


def _need_checkout() -> None:
    """Makes the checkout's pipelines importable: of the folder that this package is in, else of the current one."""
    homes = [folder for folder in (Path(__file__).parents[1], Path.cwd()) if (folder / "pipelines/submit.py").is_file()]
    if not homes:
        raise LatentflowError(
            "submit compiles the pipeline from latentflow's sources: clone the project and run it in that folder."
        )
    if str(homes[0]) not in sys.path:
        sys.path.insert(0, str(homes[0]))
    if find_spec("kfp") is None or find_spec("kfp.kubernetes") is None:
        raise LatentflowError("submit needs Kubeflow's SDK: run `pip install -c constraints.txt -e '.[kubeflow]'`.")


@app.command()
def summary(
    registration: Annotated[Path, typer.Option(help="Folder that register wrote.")] = REGISTRATION,
    evaluation: Evaluation = EVALUATION,
) -> None:
    """Say where the last results are and how to draw with the model."""
    from latentflow.manifest import RegistrationManifest

    _show(RegistrationManifest.read(registration), evaluation, registration)


def _show(manifest: "RegistrationManifest", evaluation: Path, registration: Path) -> None:
    uri = f"models:/{manifest.name}/{manifest.version}"
    against = f" against version {manifest.champion}" if manifest.champion else ""
    _done(
        f"gallery in {evaluation / 'gallery.png'}, report in {evaluation / 'report.html'}, metrics in "
        f"{evaluation / 'metrics.json'}, model {uri} ({f'@{manifest.alias}' if manifest.alias else 'no alias'}), gate: "
        f"{manifest.status or 'not asked'}{against}, see {registration / 'verdict.md'}",
        f'latentflow generate --model {uri} --prompt "red heart" --out heart.png',
    )


@app.command("params")
def describe() -> None:
    """List every parameter with its description; params.yaml has the values."""
    for section, field in parameters.Params.model_fields.items():
        _describe(field.alias or section, field.annotation)


def _describe(prefix: str, model: Any) -> None:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, parameters.Section):
            _describe(f"{prefix}.{name}", field.annotation)
        else:
            typer.echo(f"{prefix}.{name}: {field.description}")


def _done(result: str, next_command: str) -> None:
    typer.echo(f"{result}\nnext: {next_command}")


def main() -> None:
    """Entry point: runs a command and turns a user's error into one message and exit code 1 (2 for parameters)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # These libraries set up their own printing when they are imported; our bars and lines say what matters.
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", message="Cannot enable progress bars")
    _exit_on(app)


def _exit_on(command: Callable[[], Any]) -> None:
    try:
        command()
    except ParamsError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except LatentflowError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
