"""What a guard found in a prompt or a text, and how an answer says it: Azure OpenAI's `content_filter_results`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a guard found. It never quotes the text.

    Attributes:
        name: of the category or rule, such as `hate` or `deny`.
        filtered: it blocks; otherwise it is an annotation.
        detail: what else is known, as JSON values: a severity, or file, lines and licence of a source.
    """

    name: str
    filtered: bool
    detail: Mapping[str, Any] = field(default_factory=dict)


def blocks(findings: Sequence[Finding]) -> bool:
    """Return whether any of them blocks."""
    return any(one.filtered for one in findings)


def results(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the field `content_filter_results` of one sequence; nothing if nothing was found.

    Of several findings of one name, the first that blocks is shown, else the first.
    """
    shown: dict[str, Any] = {}
    for one in sorted(findings, key=lambda one: not one.filtered):
        shown.setdefault(one.name, {"filtered": one.filtered, "detected": True, **one.detail})
    return {"content_filter_results": shown} if shown else {}
