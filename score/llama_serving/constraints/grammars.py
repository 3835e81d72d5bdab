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
_DECODER: Final = json.JSONDecoder()


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
    head, *parts = grammar.split(JSON)
    made = [head]
    for part in parts:
        text = part.lstrip()
        try:
            schema, end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            raise GrammarError("behind `%json` a JSON schema is expected") from None
        if not isinstance(schema, dict):
            raise GrammarError("behind `%json` a JSON schema is expected")
        made.append(f"{JSON} {json.dumps(rewrite(schema))}{text[end:]}")
    return "".join(made)


def is_gbnf(grammar: str) -> bool:
    """Return whether a grammar is in GBNF's notation, which has `::=` where Lark's has `:`."""
    return _GBNF in _LITERALS.sub('""', grammar)
