"""The gate's verdict for people: a page in Markdown, and a paragraph."""

from latentflow.registry.gate import Ruling, Status, Verdict

_WORDS = {
    Status.PASSED: "passed",
    Status.FAILED: "refused",
    Status.INCONCLUSIVE: "not decided: the evidence is not enough",
    Status.NOT_COMPARABLE: "refused: it cannot be compared",
}
_RULING = {
    Status.PASSED: "passed",
    Status.FAILED: "**failed**",
    Status.INCONCLUSIVE: "not enough evidence",
    Status.NOT_COMPARABLE: "not comparable",
}


def markdown(address: str, alias: str, verdict: Verdict, reigns: bool = False) -> str:
    """The page: what was decided about the version at ``address``, why, every rule, and what can be done.

    ``reigns``: it is the champion, so nothing is to be promoted.
    """
    against = f"the champion, version {verdict.champion}" if verdict.champion else "no champion yet"
    parts = [
        f"# {address}: {_WORDS[verdict.status]}",
        f"Compared with {against}. " + (f"It is @{alias} now." if alias else "It has no alias."),
        "\n".join(f"- {reason}" for reason in verdict.reasons) if verdict.status is not Status.PASSED else "",
        table(verdict),
        "" if reigns else _advice(address, verdict),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def sentence(verdict: Verdict) -> str:
    """For a terminal and for a version's description."""
    against = f" against version {verdict.champion}" if verdict.champion else ""
    reasons = "" if verdict.status is Status.PASSED else f" {' '.join(verdict.reasons)}"
    return f"Gate: {_WORDS[verdict.status]}{against}.{reasons}"


def table(verdict: Verdict) -> str:
    """A row per rule; "" without any."""
    if not verdict.rulings:
        return ""
    head = ("figure", "rule", "this model", "champion", "difference", "verdict")
    rows = [_row(ruling) for ruling in verdict.rulings]
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines)


def _row(ruling: Ruling) -> tuple[str, ...]:
    champion = "" if ruling.champion is None else f"{ruling.champion:.4g}"
    return (
        ruling.metric,
        ruling.bound,
        f"{ruling.candidate:.4g}",
        champion,
        _difference(ruling),
        _RULING[ruling.status],
    )


def _difference(ruling: Ruling) -> str:
    if (pairs := ruling.paired) is not None:
        return f"{pairs.difference:+.4g} ({pairs.low:+.4g} to {pairs.high:+.4g}, {pairs.units:,} units)"
    return "" if ruling.champion is None else f"{ruling.candidate - ruling.champion:+.4g}"


def _advice(address: str, verdict: Verdict) -> str:
    if verdict.status is Status.PASSED:
        return f"`latentflow promote {address}` makes it the champion."
    if verdict.status is Status.INCONCLUSIVE:
        more = "More captions or seeds (evaluate.captions, evaluate.seeds) narrow the intervals. "
        return f'{more}`latentflow promote {address} --reason "..."` makes it the champion all the same.'
    return f'It is kept as evidence. `latentflow promote {address} --reason "..."` makes it the champion all the same.'
