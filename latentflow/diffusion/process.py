"""What training and sampling must agree on, as one object that is saved with the model."""

from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from torch import Tensor

from latentflow.diffusion.definition import Definition
from latentflow.diffusion.definitions import find
from latentflow.diffusion.schedules import Schedule


@dataclass(frozen=True)
class Diffusion:
    """A definition by name and the schedule along which its model is drawn by default."""

    name: str = "flow"
    schedule: Schedule = field(default_factory=Schedule)

    @cached_property
    def definition(self) -> Definition:
        """The definition itself. Raises ValueError where there is none of that name."""
        return find(self.name)

    @property
    def steps(self) -> int | None:
        """How many steps the user's own σ make; None where any number will do."""
        return len(self.schedule.sigmas) - 1 if self.schedule.name == "given" else None

    def sigmas(self, steps: int, tokens: int | None = None) -> Tensor:
        """The grid of a run with so many steps, float64 (steps + 1,)."""
        return self.schedule(self.definition, steps, tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``from_json`` reads them back."""
        return {"definition": self.name, "schedule": asdict(self.schedule)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Diffusion":
        """Raises ValueError that names what is missing or unknown."""
        if set(values) != {"definition", "schedule"}:
            raise ValueError(f"a diffusion is `definition` and `schedule`, found {', '.join(values) or 'nothing'}")
        if not isinstance(values["schedule"], dict):
            raise ValueError(f"a schedule is its name and dials, found {values['schedule']!r}")
        known = {known.name for known in fields(Schedule)}
        if unknown := sorted(set(values["schedule"]) - known):
            raise ValueError(f"a schedule has no {', '.join(unknown)}; its fields are {', '.join(sorted(known))}")
        given = dict(values["schedule"])
        return cls(values["definition"], Schedule(**given | {"sigmas": tuple(given.get("sigmas", ()))}))
