"""A chain and what has changed since, as a tree for a terminal and as JSON."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from latentflow.registry.chain import Link
from latentflow.registry.drift import Change, Drift

_SHOWN = 8


@dataclass(frozen=True)
class Node:
    """A line, and what hangs below it."""

    text: str
    below: "list[Node]" = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield self.text
        for number, node in enumerate(self.below):
            last = number == len(self.below) - 1
            first, *rest = node.lines()
            yield ("└─ " if last else "├─ ") + first
            for line in rest:
                yield ("   " if last else "│  ") + line


def tree(link: Link, drift: Drift) -> str:
    """The chain from the version down to data and code, then what differs here."""
    node = _link(link)
    node.below.append(_drift(drift))
    return "\n".join(node.lines())


def as_json(link: Link, drift: Drift) -> str:
    """The same for programs: {"model": ..., "since": ...}."""
    return json.dumps({"model": asdict(link), "since": asdict(drift)}, indent=2, ensure_ascii=False)


def _link(link: Link) -> Node:
    marks = "".join(f" @{alias}" for alias in link.aliases)
    return Node(f"{link.address}{marks}", [_model(link), _evaluation(link), _data(link), _code(link), _parent(link)])


def _model(link: Link) -> Node:
    moves = [
        Node(f"{what} {link.moves[f'{what}_at']} by {link.moves[f'{what}_by']}: {link.moves[f'{what}_because']}")
        for what in ("promoted", "retired")
        if {f"{what}_{part}" for part in ("at", "by", "because")} <= link.moves.keys()
    ]
    facts = [
        Node(f"trained in MLflow run {link.run or 'unknown'}, parameters and inputs {_short(link.fingerprint)}"),
        Node(f"registered {link.created}"),
        *moves,
    ]
    return Node(f"model {_short(link.model_digest)} {link.pipeline_class}".rstrip(), facts)


def _evaluation(link: Link) -> Node:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in link.figures.items())
    against = f" against version {link.champion}" if link.champion else ""
    return Node(
        f"evaluation {_short(link.evaluation)} in MLflow run {link.evaluation_run or 'unknown'}",
        [Node(figures or "no figures"), Node(f"gate: {link.status or 'not asked'}{against}")],
    )


def _data(link: Link) -> Node:
    source = " ".join(filter(None, [link.data.get("source", "of an unknown source"), link.data.get("revision", "")]))
    digests = {"records": link.data.get("digest", ""), **link.digests}
    below = [Node(f"{name} {_short(digest)}") for name, digest in digests.items() if digest and name != "pretrained"]
    below += [Node(f"{path}: DVC's md5 {md5}") for path, md5 in link.dvc.items()]
    below += [Node(f"{name}: {link.data[name]}") for name in ("license", "credit") if link.data.get(name)]
    return Node(f"data {source}", below)


_CODE = {
    "latentflow_version": "latentflow",
    "image": "image",
    "kfp_run_id": "Kubeflow run",
    "dvc_stage": "DVC stage",
    "evaluation_git_commit": "evaluated with the code of commit",
    "evaluation_image": "evaluated in image",
    "evaluation_kfp_run_id": "evaluated in Kubeflow run",
}


def _code(link: Link) -> Node:
    commit = link.code.get("git_commit", "")
    dirty = ", with uncommitted changes" if link.code.get("git_dirty") == "true" else ""
    shown = {name: link.code[name] for name in _CODE if name in link.code}
    if shown.get("evaluation_git_commit") == commit:
        shown.pop("evaluation_git_commit", "")
    return Node(
        f"code of commit {commit or 'unknown'}{dirty}", [Node(f"{_CODE[n]} {value}") for n, value in shown.items()]
    )


def _parent(link: Link) -> Node:
    if isinstance(link.parent, Link):
        return Node("fine-tuned from", [_link(link.parent)])
    if link.parent:
        return Node(f"fine-tuned from {link.parent}, weights {_short(link.digests.get('pretrained', ''))}")
    return Node("trained from scratch")


def _drift(drift: Drift) -> Node:
    below = []
    if drift.parameters:
        below.append(Node("parameters", [Node(_changed(change)) for change in drift.parameters]))
    if drift.code:
        below.append(Node("code", _files(drift.code)))
    if drift.data:
        below.append(Node("data", [Node(_changed(change)) for change in drift.data]))
    below += [Node(f"not known: {text}") for text in drift.unknown]
    return Node("since then, here: nothing has changed" if drift.nothing else "since then, here", below)


def _changed(change: Change) -> str:
    return f"{change.what}: {_value(change.then)} -> {_value(change.now)}"


def _value(text: str) -> str:
    if not text:
        return "(none)"
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return _short(text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _files(code: Mapping[str, list[str]]) -> list[Node]:
    return [Node(f"{step}: {', '.join(files[:_SHOWN])}{_more(len(files) - _SHOWN)}") for step, files in code.items()]


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _short(digest: str) -> str:
    return digest[:12] or "unknown"
