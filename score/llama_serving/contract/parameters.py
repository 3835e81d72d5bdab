"""The parameters' object -> `Parameters`: aliases, nulls, and the one place where they may stand."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from llama_serving.contract.request import Parameters
from llama_serving.contract.validation import path_of
from llama_serving.errors import BadRequest

ALIASES: Final[Mapping[str, str]] = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "n": "num_return_sequences",
    "echo": "return_full_text",
}
"""Other protocols' names of the same things."""

NAMES: Final = tuple(field.name for field in fields(Parameters))
_INTEGERS: Final = frozenset(
    ("max_new_tokens", "min_new_tokens", "top_k", "num_return_sequences", "seed", "logprobs")
)


def parse(given: Mapping[str, Any], at: str = "") -> Parameters:
    """`given`, which the schema has passed, under one name each and without nulls.

    Raises:
        BadRequest: one thing is given under two names.
    """
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, value in given.items():
        if value is None:
            continue
        target = ALIASES.get(name, name)
        if target in spelled:
            raise BadRequest(
                f"`{spelled[target]}` and `{name}` are the same parameter. Send one of them.",
                code="competing_fields",
                param=path_of(*([at] if at else []), name),
            )
        spelled[target] = name
        values[target] = _plain(target, value)
    return Parameters(**values)


def only_one(places: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The place where parameters stand, and what stands there; none at all is an empty object.

    Raises:
        BadRequest: they stand in two places.
    """
    found = [(path, value) for path, value in places.items() if value is not None]
    if len(found) > 1:
        names = " and ".join(f"`{path}`" for path, _ in found)
        raise BadRequest(
            f"Parameters stand in {names}. Send them in one place.",
            code="competing_fields",
            param=found[1][0],
        )
    return found[0] if found else (next(iter(places)), {})


def _plain(name: str, value: Any) -> Any:
    if name in _INTEGERS:
        return int(value)
    if name == "stop":
        return (value,) if isinstance(value, str) else tuple(value)
    return value if isinstance(value, bool) else float(value)
