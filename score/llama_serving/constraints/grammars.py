"""Context-free grammars in Lark's notation, as llguidance reads it, or in GBNF's, and the JSON schemas in them."""

import json
import re
from collections.abc import Callable
from typing import Any, Final

JSON: Final = "%json"
_LITERALS: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|//[^\n]*|#[^\n]*')
_SPECIAL: Final = re.compile(r"<[^<>\n]+>")
_OPTION: Final = re.compile(r"\b(?:stop|suffix|lazy|max_tokens|temperature)\b\s*[=,\]]")
_SETTING: Final = re.compile(r"%llguidance\s*(?!\s*\{\s*\})")
_GBNF: Final = "::="
_LITERAL_OR_JSON: Final = re.compile(rf"{_LITERALS.pattern}|{JSON}\b")
_RULE: Final = re.compile(
    r"^[ \t]*[?!]?[A-Za-z_][\w-]*(?:\.\d+)?(?:\[[^\]\n]*\])?[ \t]*(?:::=|:)", re.MULTILINE
)
MOST_RULES: Final = 500
MOST_DEPTH: Final = 50
"""Of brackets. Both are compiled by recursion, here and in vLLM."""


def _no_number(name: str) -> None:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_no_number)


class GrammarError(ValueError):
    """A grammar that can't be held; the message says why, and begins in the middle of a sentence."""


def check(grammar: str) -> None:
    """Check that a grammar is about text alone.

    Raises:
        GrammarError: it names special tokens, or has options that take other than all of a text into account.
    """
    if _SETTING.search(grammar):
        raise GrammarError("settings by `%llguidance` are not supported")
    plain = _LITERALS.sub('""', with_schemas(grammar, lambda _: {}))
    if len(_RULE.findall(plain)) > MOST_RULES:
        raise GrammarError(f"it has more than {MOST_RULES} rules")
    if _depth(plain) > MOST_DEPTH:
        raise GrammarError(f"its brackets are nested deeper than {MOST_DEPTH} levels")
    if _GBNF not in plain and _SPECIAL.search(plain):
        raise GrammarError("it names a special token, which no text has")
    if _GBNF not in plain and _OPTION.search(plain):
        raise GrammarError(
            "the options `stop`, `suffix`, `lazy`, `max_tokens` and `temperature` of a rule are not supported"
        )


def with_schemas(grammar: str, rewrite: Callable[[Any], Any]) -> str:
    """Return the grammar with each JSON schema in it (`%json {...}`) rewritten.

    Raises:
        GrammarError: what stands behind `%json` is no JSON object.
    """
    made, at = [], 0
    while (found := _LITERAL_OR_JSON.search(grammar, at)) is not None:
        if found[0] != JSON:
            made.append(grammar[at : found.end()])
            at = found.end()
            continue
        schema, end = _decoded(grammar, found.end())
        made.append(f"{grammar[at : found.start()]}{JSON} {json.dumps(rewrite(schema))}")
        at = end
    return "".join(made) + grammar[at:]


def _decoded(grammar: str, at: int) -> tuple[dict[str, Any], int]:
    """Return the JSON object that begins behind white space, and where it ends."""
    try:
        schema, end = _DECODER.raw_decode(grammar, len(grammar) - len(grammar[at:].lstrip()))
    except (ValueError, RecursionError):
        raise GrammarError("behind `%json` a JSON schema is expected") from None
    if not isinstance(schema, dict):
        raise GrammarError("behind `%json` a JSON schema is expected")
    return schema, end


def _depth(plain: str) -> int:
    depth = most = 0
    for character in plain:
        depth += (character in "([{") - (character in ")]}")
        most = max(most, depth)
    return most


def is_gbnf(grammar: str) -> bool:
    """Return whether a grammar is in GBNF's notation, which has `::=` where Lark's has `:`."""
    return _GBNF in _LITERALS.sub('""', grammar)
