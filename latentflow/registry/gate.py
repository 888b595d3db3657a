"""The gate: may a model be used in the place of the champion? A rule per figure, a ruling per rule, one verdict.

Thresholds are bounds that a figure must keep. A comparison asks whether the candidate is worse than the champion by
more than a tolerance; as in a trial of non-inferiority (Piaggio et al., Reporting of noninferiority and equivalence
randomized trials, JAMA 308, 2012) the answer is read off the interval of the paired difference, and not off the
difference: `failed` where the whole interval is beyond the tolerance, `passed` where none of it is, and
`inconclusive` where the units that were measured do not tell. A model passes when it passes in every figure, for
which each interval needs no correction for the number of figures (Berger and Hsu, Bioequivalence trials,
intersection-union tests and equivalence confidence sets, Statistical Science 11, 1996).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from latentflow.errors import LatentflowError
from latentflow.evaluation.directions import direction
from latentflow.evaluation.pairs import Paired, paired
from latentflow.evaluation.protocol import OWN
from latentflow.files import digest_json
from latentflow.params import GateParams, Threshold

# Figures of the machine as much as of the model.
_OF_THE_DEVICE = ("seconds_", "memory_")


class Status(StrEnum):
    """What a rule, or the gate, says of a model."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    NOT_COMPARABLE = "not_comparable"

    @property
    def refused(self) -> bool:
        """Whether such a model gets no alias."""
        return self in (Status.FAILED, Status.NOT_COMPARABLE)


@dataclass(frozen=True)
class Judged:
    """An evaluation as the gate reads it: what metrics.json, units.csv and protocol.json hold."""

    metrics: Mapping[str, float]
    units: Mapping[str, Mapping[str, float]]
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Ruling:
    """What one rule says: ``bound`` is the rule in words, ``why`` the reason in a sentence."""

    metric: str
    bound: str
    status: Status
    candidate: float
    champion: float | None
    paired: Paired | None
    why: str


@dataclass(frozen=True)
class Verdict:
    """All rulings, what follows from them, and the champion's version ("" where there was none)."""

    status: Status
    champion: str
    rulings: list[Ruling]
    remarks: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """Why it is so, in sentences: the remarks, and the rulings of the verdict's own status."""
        return [*self.remarks, *(ruling.why for ruling in self.rulings if ruling.status is self.status)]


def rules_key(rules: GateParams, champion: str) -> str:
    """What a verdict rests on beside the model: the rules and the champion's version."""
    return digest_json([rules.model_dump(mode="json"), champion])


def check(rules: GateParams, metrics: Mapping[str, float]) -> None:
    """Refuses rules that name what was not measured, or compare what is neither good nor bad."""
    for kind, names in (("thresholds", rules.thresholds), ("comparisons", rules.comparisons)):
        if missing := [name for name in names if name not in metrics]:
            raise LatentflowError(
                f"register.gate.{kind} names {', '.join(missing)}, which the evaluation did not measure; it has "
                f"{', '.join(sorted(name for name in metrics if direction(name)))}."
            )
    if pointless := [name for name in rules.comparisons if not direction(name)]:
        raise LatentflowError(
            f"register.gate.comparisons names {', '.join(pointless)}, of which neither more nor less is better."
        )


def verdict(
    rules: GateParams, candidate: Judged, champion: Judged | None = None, version: str = "", trouble: str = ""
) -> Verdict:
    """What the rules say of the candidate, beside the champion, whose version is ``version``.

    Without a champion (``version`` "") the thresholds decide alone. ``trouble`` says why a champion that there is has
    no evaluation to compare with. Raises LatentflowError for rules that cannot be applied.
    """
    check(rules, candidate.metrics)
    rulings = [_bounded(name, bounds, candidate) for name, bounds in rules.thresholds.items()]
    if champion is None:
        remarks = [trouble] if trouble else []
        return Verdict(_sum_up(rulings, comparable=not trouble), version, rulings, remarks)
    differing = differences(candidate.protocol, champion.protocol)
    if differing - {"device"}:
        remarks = [_apart(differing - {"device"}, candidate.protocol, champion.protocol, version)]
        return Verdict(_sum_up(rulings, comparable=False), version, rulings, remarks)
    compared = [
        _compared(name, tolerance, candidate, champion, rules.confidence, same_device=not differing)
        for name, tolerance in rules.comparisons.items()
    ]
    comparable = not compared or any(ruling.status is not Status.NOT_COMPARABLE for ruling in compared)
    remarks = [] if comparable else ["None of the comparisons can be made."]
    return Verdict(_sum_up(rulings + compared, comparable), version, rulings + compared, remarks)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> set[str]:
    """The fields of two protocols that differ, apart from what a model ships with."""
    names = (first.keys() | second.keys()) - OWN - {"comparison"}
    return {name for name in names if first.get(name) != second.get(name)}


def _sum_up(rulings: list[Ruling], comparable: bool) -> Status:
    found = {ruling.status for ruling in rulings}
    if Status.FAILED in found:
        return Status.FAILED
    if not comparable:
        return Status.NOT_COMPARABLE
    return Status.INCONCLUSIVE if Status.INCONCLUSIVE in found else Status.PASSED


def _bounded(name: str, bounds: Threshold, candidate: Judged) -> Ruling:
    value = candidate.metrics[name]
    low, high = bounds.min, bounds.max
    kept = (low is None or value >= low) and (high is None or value <= high)
    words = " and ".join(_bounds(bounds))
    why = f"{name} is {value:.4g}, and must be {words}."
    return Ruling(name, words, Status.PASSED if kept else Status.FAILED, value, None, None, why)


def _bounds(bounds: Threshold) -> Iterator[str]:
    if bounds.min is not None:
        yield f"at least {bounds.min:g}"
    if bounds.max is not None:
        yield f"at most {bounds.max:g}"


def _compared(
    name: str, tolerance: float | str, candidate: Judged, champion: Judged, confidence: float, same_device: bool
) -> Ruling:
    value, other = candidate.metrics[name], champion.metrics.get(name)
    arrow = direction(name)
    words = f"not {'below' if arrow > 0 else 'above'} the champion by more than {tolerance}"

    def ruling(status: Status, why: str, pairs: Paired | None = None) -> Ruling:
        return Ruling(name, words, status, value, other, pairs, f"{name}: {why}.")

    if other is None:
        return ruling(Status.NOT_COMPARABLE, "the champion has no such figure under this protocol")
    if not same_device and name.startswith(_OF_THE_DEVICE):
        return ruling(Status.NOT_COMPARABLE, "the two were measured on different devices")
    allowed = _allowed(tolerance, other)
    pairs = paired(name, candidate.units.get(name, {}), champion.units.get(name, {}), confidence)
    if pairs is None:
        worse = -arrow * (value - other) > allowed
        how = f"{value:.4g} against {other:.4g}; no units, so its noise is not known"
        return ruling(Status.FAILED if worse else Status.PASSED, how)
    # How much better the candidate is, whichever way the figure points.
    low, high = sorted((arrow * pairs.low, arrow * pairs.high))
    interval = (
        f"{value:.4g} against {other:.4g}, difference {pairs.difference:+.4g} ({100 * confidence:g} % interval "
        f"{pairs.low:+.4g} to {pairs.high:+.4g}, {pairs.units} units)"
    )
    if high < -allowed:
        return ruling(Status.FAILED, f"worse by more than {allowed:.4g}: {interval}", pairs)
    if low >= -allowed:
        return ruling(Status.PASSED, f"not worse by more than {allowed:.4g}: {interval}", pairs)
    return ruling(
        Status.INCONCLUSIVE, f"these units do not tell whether it is worse by {allowed:.4g}: {interval}", pairs
    )


def _allowed(tolerance: float | str, champion: float) -> float:
    if isinstance(tolerance, str):
        return float(tolerance.rstrip("% ")) / 100 * abs(champion)
    return tolerance


def _apart(names: set[str], first: Mapping[str, Any], second: Mapping[str, Any], version: str) -> str:
    told = {"reference_digest": "the real pictures", "prompts_digest": "the captions and seeds", "version": "the code"}
    what = ", ".join(
        f"{told.get(name, name)} ({_short(first.get(name))} and {_short(second.get(name))})" for name in sorted(names)
    )
    return (
        f"This evaluation and that of version {version} differ in {what}, so their figures do not compare: "
        "register with --encoded and --records of the data that this model was judged on, and with the evaluate "
        "parameters of then; the champion is judged the same way."
    )


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 24 else str(value)
