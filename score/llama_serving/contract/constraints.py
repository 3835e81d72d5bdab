"""OpenAI's `response_format`, vLLM's `structured_outputs`, Ollama's `format`, llama.cpp's `json_schema` and `grammar` -> `Constraint`.

The published schemas have accepted the values.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from llama_serving.constraints import constraint
from llama_serving.constraints.constraint import ANY_OBJECT, Constraint
from llama_serving.contract.strict_json import decode_value
from llama_serving.errors import BadRequest


def asks(name: str, value: Mapping[str, Any] | None) -> bool:
    """Return whether a field asks for anything but plain text."""
    if not value:
        return False
    return value["type"] != "text" if name == "response_format" else bool(_given(value))


def parse(name: str, value: Any, at: str) -> Constraint | None:
    """Return the constraint in a field; None if it asks for plain text.

    Args:
        name: of the field.
        value: of the field.
        at: its path in the body.

    Raises:
        BadRequest: it can't be held exactly, or it has several constraints.
    """
    return _FIELDS[name](value, at) if value else None


def _of_response_format(value: Mapping[str, Any], at: str) -> Constraint | None:
    match value["type"]:
        case "json_object":
            return Constraint("json", ANY_OBJECT)
        case "json_schema":
            return _of_schema(value, at)
    return None


def _of_schema(value: Mapping[str, Any], at: str) -> Constraint:
    inner = value.get("json_schema")
    schema = None if inner is None else inner.get("schema")
    if schema is None:
        raise BadRequest(
            f"`{at}.json_schema.schema` is missing: send the JSON schema that the text must be valid against.",
            code="missing_field",
            param=f"{at}.json_schema.schema",
        )
    return constraint.of_schema(schema, f"{at}.json_schema.schema")


def _of_outputs(value: Mapping[str, Any], at: str) -> Constraint | None:
    given = _given(value)
    if not given:
        return None
    if len(given) > 1:
        names = " and ".join(f"`{kind}`" for kind, _ in given)
        raise BadRequest(f"`{at}` has {names}. Send one of them.", code="competing_fields", param=at)
    kind, held = given[0]
    return _KINDS[kind](held, f"{at}.{kind}")


def _given(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    nothing = (("json_object", False),)
    return [one for one in value.items() if one[1] is not None and one not in nothing]


def _of_json(value: Any, at: str) -> Constraint:
    """Return the constraint of a schema, or of one as JSON text, which vLLM takes too."""
    if isinstance(value, str):
        try:
            value = decode_value(value.encode())
        except BadRequest:
            raise BadRequest(
                f"`{at}` is not valid JSON. Send a JSON schema.", code="invalid_json", param=at
            ) from None
    return constraint.of_schema(value, at)


def _of_any_object(_: Any, __: str) -> Constraint:
    return Constraint("json", ANY_OBJECT)


_KINDS: Final[Mapping[str, Callable[[Any, str], Constraint]]] = {
    "json": _of_json,
    "json_object": _of_any_object,
    "regex": constraint.of_regex,
    "choice": constraint.of_choice,
    "grammar": constraint.of_grammar,
}


def _of_ollamas_format(value: str | Mapping[str, Any], at: str) -> Constraint:
    if value == "json":
        return Constraint("json", ANY_OBJECT)
    if isinstance(value, str):
        raise BadRequest(f'`{at}` must be "json" or a JSON schema.', code="invalid_value", param=at)
    return constraint.of_schema(value, at)


_FIELDS: Final[Mapping[str, Callable[[Any, str], Constraint | None]]] = {
    "response_format": _of_response_format,
    "structured_outputs": _of_outputs,
    "format": _of_ollamas_format,
    "json_schema": constraint.of_schema,
    "grammar": constraint.of_grammar,
}
