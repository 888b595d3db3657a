"""What the registry holds, as the page shows it: models, their versions with aliases, figures and lineage."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from latentflow.errors import RegistryError
from latentflow.registry import store
from latentflow.registry.marks import METRIC
from latentflow.workspace import tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_OURS = "latentflow."


@dataclass(frozen=True)
class Version:
    """A version of a registered model; ``lineage`` is its tags without `latentflow.` and without the figures."""

    name: str
    number: int
    aliases: tuple[str, ...]
    created: datetime
    metrics: dict[str, float]
    lineage: dict[str, str]

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"

    @property
    def label(self) -> str:
        """`version 3 @champion`"""
        return " ".join([f"version {self.number}", *(f"@{alias}" for alias in self.aliases)])


def names() -> list[str]:
    """The registered models. Raises RegistryError when the store does not answer or has none."""
    client = store.connect(create=False)
    with store.mlflow_errors("list its models"):
        found = sorted(model.name for model in client.search_registered_models())
    if not found:
        raise RegistryError(
            f"There is no registered model in {store.shown(tracking_uri())}: run `latentflow register` first."
        )
    return found


def versions(name: str) -> list[Version]:
    """The versions that can be drawn with, newest first."""
    client = store.connect(create=False)
    with store.mlflow_errors(f"list the versions of {name}"):
        model = client.get_registered_model(name)
        found = client.search_model_versions(f"name = '{name}'")
        aliases = {alias: int(number) for alias, number in model.aliases.items()}
    made = [_version(one, aliases) for one in found if one.status == "READY"]
    return sorted(made, key=lambda version: -version.number)


def first_choice(found: list[Version]) -> tuple[Version, Version | None]:
    """What to show at first: the champion and the newest other one, else the two newest."""
    champion = next((version for version in found if "champion" in version.aliases), found[0])
    return champion, next((version for version in found if version != champion), None)


def headlines(metrics: dict[str, float]) -> dict[str, str]:
    """The figures to compare by, with their intervals: what only serves another figure is left out."""
    shown = {}
    for name, value in metrics.items():
        if name.endswith(("_low", "_high", "_half_width")) or "chance" in name or "_by_" in name:
            continue
        shown[name] = f"{value:.4g}"
        if f"{name}_low" in metrics and f"{name}_high" in metrics:
            shown[name] += f" ({metrics[f'{name}_low']:.3g} to {metrics[f'{name}_high']:.3g})"
        elif f"{name}_half_width" in metrics:
            shown[name] += f" ± {metrics[f'{name}_half_width']:.2g}"
    return shown


def _version(one: "ModelVersion", aliases: dict[str, int]) -> Version:
    tags = {key.removeprefix(_OURS): value for key, value in one.tags.items() if key.startswith(_OURS)}
    figure = METRIC.removeprefix(_OURS)
    return Version(
        name=one.name,
        number=int(one.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == int(one.version))),
        created=datetime.fromtimestamp(one.creation_timestamp / 1000, tz=UTC),
        metrics={key.removeprefix(figure): float(value) for key, value in tags.items() if key.startswith(figure)},
        lineage={key: value for key, value in tags.items() if not key.startswith(figure)},
    )
