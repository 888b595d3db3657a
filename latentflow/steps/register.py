"""register: the judged model becomes a version in MLflow's registry, once, with the gate's verdict."""

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.errors import LatentflowError, RefusedError, RegistryError
from latentflow.files import atomic_folder, copy_tree_or_file, digest_json, write_json, write_text
from latentflow.manifest import RecordsManifest, RegistrationManifest, fingerprint
from latentflow.params import EvaluateParams, RegisterInputs, RegisterParams
from latentflow.workspace import tracking_uri, work_place

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from latentflow.registry.gate import Verdict
    from latentflow.registry.judged import Judge
    from latentflow.registry.packaging import Package
    from latentflow.registry.versions import Version

VERSION = 2
VERDICT, VERDICT_JSON, COMPARISON = "verdict.md", "verdict.json", "comparison.html"


def run(
    inputs: RegisterInputs,
    model: Path,
    evaluation: Path,
    out: Path,
    force_rerun: str = "",
    encoded: Path | str | None = None,
    records: Path | None = None,
    parts: Sequence[Path | str] = (),
) -> RegistrationManifest:
    """Registers model and evaluation, or finds them registered (then nothing heavy is imported or uploaded).

    ``encoded``, ``parts`` and ``records`` are what the model was judged on; the champion is judged on them too where
    the registry holds no evaluation of it that compares. Without them such a champion makes the verdict
    `not_comparable`. Raises RegistryError when the registry fails; it says where the model is and how to register it
    later. Raises RefusedError when the gate refuses the model and ``register.refused`` is `fail`; ``out`` is written
    all the same.
    """
    from latentflow.registry import glance
    from latentflow.registry.gate import Status, check
    from latentflow.registry.packaging import prepare

    params = inputs.register_
    package = prepare(params.name, model, evaluation)
    judge = _judge(inputs.evaluate, package, encoded, records, parts)
    check(params.gate, package.evaluation.metrics)
    digests = {"model": package.model.digest, "evaluation": package.evaluation.digest}
    version = glance.registered(params, package.model.digest, package.evaluation.fingerprint)
    if version is None or not (_kept(version) / VERDICT).is_file():
        try:
            version = _register(params, package, model, judge)
        except RegistryError as error:
            raise RegistryError(
                f"{error} The trained model is kept at {model / 'pipeline'}; once MLflow answers, "
                f"register it with `{_command(model, evaluation, out)}`."
            ) from error
    manifest = RegistrationManifest(
        # Which version it became depends on the registry's history; what was registered does not.
        digest=digest_json([params.name, package.model.digest, package.evaluation.fingerprint]),
        fingerprint=fingerprint("register", VERSION, inputs, digests, force_rerun),
        inputs=digests,
        name=version.name,
        version=version.version,
        alias=version.alias,
        mlflow_run_id=version.run_id,
        status=version.status,
        champion=version.champion,
    )
    with atomic_folder(out) as folder:
        copy_tree_or_file(_kept(version), folder)
        manifest.write(folder)
    if params.refused == "fail" and version.status and Status(version.status).refused:
        raise RefusedError(
            f"The gate refuses version {version.version} of {version.name!r} ({version.status}), and register.refused "
            f"is fail: {out / VERDICT} says why."
        )
    return manifest


def _judge(
    params: EvaluateParams,
    package: "Package",
    encoded: Path | str | None,
    records: Path | None,
    parts: Sequence[Path | str],
) -> "Judge | None":
    """Judges a pipeline as the model was, on the records that it was judged on."""
    if encoded is None or records is None:
        return None
    reference, protocol = RecordsManifest.read(records).digest, package.protocol
    if reference != protocol.get("reference_digest", reference):
        raise LatentflowError(
            f"{package.results} was made with other records ({protocol['reference_digest'][:12]}) than those in "
            f"{records} ({reference[:12]}): give those, or run `latentflow evaluate` again."
        )

    def judge(pipeline: Path, digest: str, folder: Path) -> None:
        from latentflow.steps import evaluate

        try:
            evaluate.judge_folder(params, pipeline, encoded, records, folder, parts, digest)
        except OSError as error:
            raise RegistryError(f"The champion could not be judged: {error}.") from error

    return judge


def _register(params: RegisterParams, package: "Package", model: Path, judge: "Judge | None") -> "Version":
    from latentflow.registry import store, versions
    from latentflow.registry.delivering import deliver_for

    client = store.connect()
    deliver_for(package.model.fingerprint, package.evaluation.fingerprint)
    gate = _Gate(client, params, package, judge)
    with store.mlflow_errors(f"register {params.name!r}"):
        registration = versions.Registration(client, params, package, _metrics(model))
        version, verdict = registration.register(gate.compare)
    _keep(version, verdict, gate)
    return version


class _Gate:
    """The gate before one model, and the champion's evaluation that it last read ("champion": None before)."""

    def __init__(
        self, client: "MlflowClient", params: RegisterParams, package: "Package", judge: "Judge | None"
    ) -> None:
        self._client = client
        self._params = params
        self._judge = judge
        self.champion_alias = params.champion_alias
        self.results = package.results
        self.champion: Path | None = None

    def compare(self, champion: "ModelVersion | None") -> "Verdict":
        """The verdict beside this champion, which is judged now where the registry holds no evaluation to use."""
        from latentflow.registry import judged
        from latentflow.registry.gate import verdict

        rules, candidate = self._params.gate, judged.read(self.results)
        self.champion = None
        if champion is None:
            return verdict(rules, candidate)
        number = str(champion.version)
        try:
            self.champion = judged.of_champion(self._client, champion, candidate.protocol, self._judge)
        except RegistryError:
            raise
        except LatentflowError as error:
            return verdict(rules, candidate, version=number, trouble=str(error))
        return verdict(rules, candidate, judged.read(self.champion), number)


def _keep(version: "Version", verdict: "Verdict", gate: _Gate) -> None:
    """Writes the verdict's files to the work store: the next run, which finds nothing to do, hands them out again."""
    from latentflow.evaluation.comparison import page
    from latentflow.registry import verdict_text

    address = f"models:/{version.name}/{version.version}"
    with atomic_folder(_kept(version)) as folder:
        if gate.champion is not None:
            with suppress(LatentflowError):  # The verdict says already where the two do not compare.
                write_text(folder / COMPARISON, page(gate.results, gate.champion))
        write_text(
            folder / VERDICT,
            verdict_text.markdown(address, version.alias, verdict, version.alias == gate.champion_alias),
        )
        write_json(folder / VERDICT_JSON, asdict(verdict))


def _kept(version: "Version") -> Path:
    return work_place("register", digest_json([tracking_uri(), version.name, version.version, version.rules]))


def _metrics(model: Path) -> dict[str, float]:
    path = model / "metrics.json"
    return {name: float(value) for name, value in json.loads(path.read_text()).items()} if path.is_file() else {}


def _command(model: Path, evaluation: Path, out: Path) -> str:
    """`latentflow register`, with the folders that are not the default ones."""
    given = {
        "--model": (model, "data/model"),
        "--evaluation": (evaluation, "data/evaluation"),
        "--out": (out, "data/registration"),
    }
    options = [f"{name} {shlex.quote(str(path))}" for name, (path, usual) in given.items() if path != Path(usual)]
    return " ".join(["latentflow register", *options])
