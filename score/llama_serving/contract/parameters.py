"""The parameters of a body -> `Parameters`: aliases, nulls, and the one place where they may be."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, replace
from typing import Any, Final

from llama_serving.contract import constraints, logit_bias
from llama_serving.contract.request import Parameters
from llama_serving.contract.validation import path_of
from llama_serving.errors import BadRequest

ALIASES: Final[Mapping[str, str]] = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "max_gen_len": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "stop_sequences": "stop",
    "n": "num_return_sequences",
    "echo": "return_full_text",
    "structured_outputs": "response_format",
}
"""Other protocols' names of our parameters."""

CONSTRAINT: Final = "response_format"
"""The parameter that holds the text to a schema and the like."""
_OBJECTS: Final = {CONSTRAINT: constraints.parse, "logit_bias": logit_bias.parse}
"""Parsers of the parameters that are objects."""
NAMES: Final = tuple(field.name for field in fields(Parameters))
_INTEGERS: Final = frozenset(
    ("max_new_tokens", "min_new_tokens", "top_k", "num_return_sequences", "seed", "logprobs", "prompt_logprobs")
)
_DEFAULTS: Final[ContextVar[Parameters | None]] = ContextVar("defaults", default=None)


def parse(given: Mapping[str, Any], at: str = "", aliases: Mapping[str, str] = ALIASES) -> Parameters:
    """Return the parameters in `given`, which the schema has accepted; `aliases` are its other names of them.

    One value under two names is one parameter, since clients of several servers send each server's name.

    Raises:
        BadRequest: one parameter has two names with different values, or no token is to be generated for nothing.
    """
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, target, value in _effective(given, at, aliases):
        if target in spelled and value != values[target]:
            raise BadRequest(
                f"`{spelled[target]}` and `{name}` are the same parameter, with two values. Send one of them.",
                code="competing_fields",
                param=path_of(*([at] if at else []), name),
            )
        spelled.setdefault(target, name)
        values[target] = value
    parsed = Parameters(**values)
    if parsed.max_new_tokens == 0:
        refuse_nothing(
            completed(parsed, _DEFAULTS.get() or Parameters()),
            path_of(*([at] if at else []), spelled["max_new_tokens"]),
        )
    return parsed


@contextmanager
def completed_by(defaults: Parameters) -> Iterator[None]:
    """Judge what is parsed inside together with these parameters, which fill what it does not set: those of all rows of a job."""
    token = _DEFAULTS.set(defaults)
    try:
        yield
    finally:
        _DEFAULTS.reset(token)


def completed(own: Parameters, defaults: Parameters) -> Parameters:
    """Return a request's own parameters, and `defaults` for those that it does not set."""
    return replace(defaults, **{name: value for name in NAMES if (value := getattr(own, name)) is not None})


def refuse_nothing(asked: Parameters, path: str) -> None:
    """Refuse parameters that neither generate a token nor show anything of the prompt.

    Args:
        path: of `max_new_tokens` in the body.

    Raises:
        BadRequest: they do.
    """
    if asked.max_new_tokens == 0 and not asked.return_full_text and asked.prompt_logprobs is None:
        raise BadRequest(
            f"`{path}` must be an integer from 1, not 0. (0 only reads the prompt: it needs `prompt_logprobs` or the prompt's "
            "echo beside it.)",
            code="invalid_value",
            param=path,
        )


def spelling(given: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the client's names of its parameters, as pairs of our name and the client's."""
    plain = {name: value for name, value in given.items() if ALIASES.get(name, name) != CONSTRAINT}
    asked = [(CONSTRAINT, name) for name in given if name not in plain and constraints.asks(name, given[name])]
    return (*((target, name) for name, target, _ in _effective(plain, "")), *asked)


def _effective(
    given: Mapping[str, Any], at: str, aliases: Mapping[str, str] = ALIASES
) -> Iterator[tuple[str, str, Any]]:
    """Yield the parameters that have an effect: the client's name, ours, and the plain value.

    The schema accepts some parameters of other servers at the value that changes nothing (`num_beams: 1`).
    """
    for name, value in given.items():
        target = aliases.get(name, name)
        if target not in NAMES or value is None:
            continue
        path = path_of(*([at] if at else []), name)
        parse_object = _OBJECTS.get(target)
        plain = _plain(target, value) if parse_object is None else parse_object(name, value, path)
        if plain is not None:
            yield name, target, plain


def only_one(places: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the path of the parameters and their object, which is empty if there are none.

    Raises:
        BadRequest: parameters are in two places.
    """
    found = [(path, value) for path, value in places.items() if value]
    if len(found) > 1:
        names = " and ".join(f"`{path}`" for path, _ in found)
        raise BadRequest(
            f"Parameters stand in {names}. Send them in one place.",
            code="competing_fields",
            param=found[1][0],
        )
    return found[0] if found else (next(iter(places)), {})


def _plain(name: str, value: Any) -> Any:
    """Return the value in its plain form; None if it has no effect."""
    if name == "logprobs" and value is False:
        return None
    if name == "top_k":
        return max(int(value), 0)  # -1 is off in vLLM
    if name in _INTEGERS:
        return int(value)
    if name == "stop":
        return ((value,) if isinstance(value, str) else tuple(value)) if value else None
    return value if isinstance(value, bool) else float(value)
