"""What a run can be told, as data that waits on disk until a store takes it, and how each is sent."""

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_DIGEST_LENGTH = 36


def now() -> int:
    """Milliseconds since the epoch, MLflow's clock."""
    return int(time.time() * 1000)


class _Entry(BaseModel):
    """``time`` is when it was told, in milliseconds since the epoch."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    time: int

    def send(self, client: "MlflowClient", run_id: str, payload: Path) -> None:
        """Tells the store; ``payload`` is the file or folder that belongs to the entry, where it has one."""
        raise NotImplementedError


class Metrics(_Entry):
    """Figures at a step."""

    kind: Literal["metrics"] = "metrics"
    values: dict[str, float]
    step: int

    @classmethod
    def now(cls, metrics: Mapping[str, float], step: int) -> Self:
        """Characters that MLflow refuses in a name become `_`."""
        values = {re.sub(r"[^\w\-./ ]", "_", name): float(value) for name, value in metrics.items()}
        return cls(time=now(), values=values, step=step)

    def send(self, client: "MlflowClient", run_id: str, payload: Path) -> None:  # noqa: ARG002
        send_metrics(client, run_id, [self])


class Picture(_Entry):
    """A picture at a step; MLflow shows those of one key under a slider. The payload is a PNG."""

    kind: Literal["picture"] = "picture"
    key: str
    step: int

    @property
    def mark(self) -> str:
        """How MLflow begins the file's name."""
        return f"{self.key.replace('/', '~')}+step+{self.step}"

    def send(self, client: "MlflowClient", run_id: str, payload: Path) -> None:
        from PIL import Image

        with Image.open(payload) as image:
            client.log_image(run_id, image, key=self.key, step=self.step, timestamp=self.time)


class Dataset(_Entry):
    """A dataset that the run read; MLflow keeps 36 characters of its digest."""

    kind: Literal["dataset"] = "dataset"
    name: str
    digest: str
    source: str
    context: str

    def send(self, client: "MlflowClient", run_id: str, payload: Path) -> None:  # noqa: ARG002
        from mlflow.entities import Dataset as Told
        from mlflow.entities import DatasetInput, InputTag

        source = json.dumps({"uri": self.source})
        told = Told(self.name, self.digest[:_DIGEST_LENGTH], source_type="external", source=source)
        client.log_inputs(run_id, datasets=[DatasetInput(told, [InputTag("mlflow.data.context", self.context)])])


class Artifact(_Entry):
    """A file or a folder, which is the payload; what has the same name in ``folder`` is replaced."""

    kind: Literal["artifact"] = "artifact"
    folder: str

    def send(self, client: "MlflowClient", run_id: str, payload: Path) -> None:
        if payload.is_dir():
            client.log_artifacts(run_id, str(payload), "/".join(part for part in (self.folder, payload.name) if part))
        else:
            client.log_artifact(run_id, str(payload), self.folder or None)


class Tag(_Entry):
    """A tag by its whole name."""

    kind: Literal["tag"] = "tag"
    name: str
    value: str

    def send(self, client: "MlflowClient", run_id: str, payload: Path) -> None:  # noqa: ARG002
        client.set_tag(run_id, self.name, self.value)


class Adapter(_Entry):
    """An adapter's folder, the payload, as a model of the run; see adapters.log_adapter."""

    kind: Literal["adapter"] = "adapter"
    base_model: str
    resolution: int
    guidance: float

    def send(self, client: "MlflowClient", run_id: str, payload: Path) -> None:
        from latentflow.registry.adapters import log_adapter

        log_adapter(client, run_id, payload, self.base_model, self.resolution, self.guidance)


class End(_Entry):
    """The run has ended as FINISHED, FAILED or KILLED."""

    kind: Literal["end"] = "end"
    status: str

    def send(self, client: "MlflowClient", run_id: str, payload: Path) -> None:  # noqa: ARG002
        client.set_terminated(run_id, self.status, end_time=self.time)


Entry = Metrics | Picture | Dataset | Artifact | Tag | Adapter | End
ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


def send_metrics(client: "MlflowClient", run_id: str, entries: list[Metrics]) -> None:
    """The figures of several steps in one request; at most 1000 of them."""
    from mlflow.entities import Metric

    points = [Metric(name, value, one.time, one.step) for one in entries for name, value in one.values.items()]
    client.log_batch(run_id, metrics=points)
