"""Names of files on this machine or elsewhere: braces spelled out, and secrets taken out of what is shown."""

import itertools
import re

from latentflow.errors import LatentflowError

MAX_EXPANDED = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def spell_out(pattern: str) -> list[str]:
    """``a-{00..02}`` and ``{a,b}`` become all their names, in order. Raises LatentflowError if they are too many."""
    parts = _BRACES.split(pattern)
    choices = [_choices(part, pattern) if i % 2 else [part] for i, part in enumerate(parts)]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > MAX_EXPANDED:
        raise LatentflowError(f"{without_secrets(pattern)} spells {total:,} names, above {MAX_EXPANDED:,}.")
    return ["".join(names) for names in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    if not (found := _RANGE.fullmatch(inside)):
        return inside.split(",")
    first, last = found.groups()
    if not 0 <= int(last) - int(first) < MAX_EXPANDED:
        raise LatentflowError(f"{without_secrets(pattern)}: {{{inside}}} counts down or beyond {MAX_EXPANDED:,}.")
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]


def without_secrets(text: str) -> str:
    """The text with ``user:password@`` and the queries (signatures, tokens) taken out of every URL in it."""
    text = re.sub(r"(\w://)[^/\s'\"]*@", r"\1", text)
    text = re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)
    # Elsewhere a question mark may be a wildcard.
    return re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*=[^\s'\"]*", r"\1", text)
