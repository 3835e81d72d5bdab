"""What a text must hold to: a frozen value, made from a request's field and passed on to the engine."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from llama_serving.constraints import grammars, patterns, schemas
from llama_serving.errors import BadRequest

Kind = Literal["json", "regex", "choice", "grammar"]

MOST_CHARACTERS: Final = 65_536
"""Of a schema, grammar or list of choices, as JSON."""
MOST_CHOICES: Final = 1000
ANY_OBJECT: Final = '{"type":"object"}'


@dataclass(frozen=True, slots=True)
class Constraint:
    """A language that the whole text must be in.

    Attributes:
        kind: of `text`, in the words of vLLM's `structured_outputs`.
        text: a JSON schema (checked, and rewritten so that a compiler holds it exactly), a pattern (rewritten likewise), a JSON
            list of choices, or a grammar in Lark's or GBNF's notation.
    """

    kind: Kind
    text: str

    @property
    def structured_outputs(self) -> dict[str, Any]:
        """The constraint as vLLM's field of that name."""
        return {self.kind: json.loads(self.text) if self.kind in ("json", "choice") else self.text}


def of_schema(schema: Any, at: str) -> Constraint:
    """Return the constraint of a JSON schema.

    Args:
        schema: a JSON value, read as draft 2020-12.
        at: its path in the body, for messages.

    Raises:
        BadRequest: it has a keyword that can't be held exactly, or is no schema; the message names the keyword.
    """
    _check_size(schema, at)
    return of_exact(schemas.exact(schema, at))


def of_exact(schema: Any) -> Constraint:
    """Return the constraint of a schema that is exact already."""
    return Constraint("json", _dump(schema))


def of_regex(pattern: str, at: str) -> Constraint:
    """Return the constraint of a pattern that the whole text matches.

    Raises:
        BadRequest: the pattern can't be held exactly.
    """
    _check_size(pattern, at)
    try:
        return Constraint("regex", patterns.whole(pattern))
    except patterns.PatternError as error:
        raise refused(at, str(error)) from None


def of_choice(choices: Sequence[str], at: str) -> Constraint:
    """Return the constraint of a list of texts, one of which the text is."""
    _check_size(choices, at)
    if not choices or len(choices) > MOST_CHOICES or not all(choices):
        raise refused(at, f"it must have 1 to {MOST_CHOICES} texts, none of them empty")
    return Constraint("choice", _dump(list(dict.fromkeys(choices))))


def of_grammar(grammar: str, at: str) -> Constraint:
    """Return the constraint of a context-free grammar.

    Raises:
        BadRequest: it has more than text in it, or a JSON schema that can't be held exactly.
    """
    _check_size(grammar, at)
    try:
        grammars.check(grammar)
        exact = grammars.with_schemas(grammar, lambda schema: schemas.exact(schema, f"{at} (%json)"))
    except grammars.GrammarError as error:
        raise refused(at, str(error)) from None
    return Constraint("grammar", exact)


def refused(at: str, why: str) -> BadRequest:
    """Return the error of a constraint that can't be held."""
    return BadRequest(f"`{at}` can't be held: {why}.", code="unsupported_constraint", param=at)


def _check_size(value: Any, at: str) -> None:
    if len(_dump(value)) > MOST_CHARACTERS:
        raise refused(at, f"it has more than {MOST_CHARACTERS} characters. Send a shorter one")


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
