"""Bytes -> JSON object, strictly: input that two parsers could read differently is refused.

`json` alone accepts duplicate keys, NaN, Infinity, lone surrogates and integers of a million digits.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from llama_serving.errors import BadRequest

MAX_DEPTH: Final = 64
MAX_CONTAINERS: Final = 32_768  # validated in half a second; 64 dialogs of 256 turns have 16,512
MAX_INTEGER_DIGITS: Final = 20  # 2^63 − 1, the largest value of the API, has 19
SCHEMAS: Final[Mapping[str, Any]] = {
    "response_format": {"json_schema": {"schema": None}},
    "structured_outputs": {"json": None},
    "tools": {"function": {"parameters": None}},
    "format": None,
    "json_schema": None,
}
"""Where JSON schemas are, at any depth of a body."""
_INTEGER_END: Final = 10**MAX_INTEGER_DIGITS


def decode(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`.

    Raises:
        BadRequest: `raw` is not UTF-8, not JSON or not an object, or holds one of the things above.
    """
    value = decode_value(raw)
    if not isinstance(value, dict):
        raise BadRequest(f"The body must be a JSON object, not {kind_of(value)}.", code="invalid_json")
    return value


def decode_value(raw: bytes) -> Any:
    """Return the JSON value in `raw`, whatever its type, under the rules of `decode`."""
    try:
        text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad_json(f"The body is not UTF-8 (byte {error.start}). Send JSON encoded as UTF-8.") from None
    if not text.strip():
        raise _bad_json("The body is empty. Send a JSON object.")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _bad_json(f"The body is not valid JSON: {error.msg} at {where}.") from None
    except RecursionError:
        raise too_deep() from None
    check_value(value)
    return value


def check_value(value: Any) -> None:
    """Refuse what `decode` would refuse, in a body that the host's server has parsed already.

    Raises:
        BadRequest: the value has more than `MAX_DEPTH` levels or `MAX_CONTAINERS` objects and lists, NaN or Infinity, an
            integer that is too long, or a string with a lone surrogate.
    """
    level, containers = [value], 0
    for depth in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for node in level:
            kind = type(node)
            if kind is int:
                _check_integer(node)
            elif kind is str:
                _check_text(node)
            elif kind is float:
                _check_float(node)
            elif kind is list or kind is dict:
                if depth == MAX_DEPTH:
                    raise too_deep()
                containers += 1
                if containers > MAX_CONTAINERS:
                    raise _too_many()
                below += node if kind is list else (*node.keys(), *node.values())
        level = below


def present(value: Any) -> Any:
    """Return the value without the keys, at any depth, whose value is null: null means absent.

    Items of lists stay: a null among prompts is an error. JSON schemas stay as they are: in them a null is a value.
    """
    return _present(value, SCHEMAS)


def _present(value: Any, schemas: Mapping[str, Any] | None) -> Any:
    if schemas is None:
        return value
    if isinstance(value, dict):
        return {
            key: _present(item, schemas.get(key, SCHEMAS)) for key, item in value.items() if item is not None
        }
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return [_present(item, schemas) for item in value]
    return value


def kind_of(value: Any) -> str:
    """Return the type of a JSON value, in JSON's terms; never the value itself, which may be a prompt."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    kinds = ((str, "a string"), (int, "a number"), (float, "a number"), (list, "a list"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "something else")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad_json(
            "A string holds a lone surrogate (\\ud800 to \\udfff), which is no character."
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _bad_json("An object has the same key twice. Send each key once.")
    return value


def _check_integer(value: int) -> None:
    if not -_INTEGER_END < value < _INTEGER_END:
        raise _bad_json(f"An integer has more than {MAX_INTEGER_DIGITS} digits; nothing here is that large.")


def _check_float(value: float) -> None:
    if not math.isfinite(value):
        raise _bad_json("A number is NaN, Infinity or too large for a 64-bit float. Send a finite one.")


def _integer(digits: str) -> int:
    """Refuse a long integer before converting it, which takes time quadratic in the digits."""
    if len(digits) > MAX_INTEGER_DIGITS + 1:
        raise _bad_json(f"An integer has {len(digits)} digits; at most {MAX_INTEGER_DIGITS} are read.")
    return int(digits)


def _bad_json(message: str) -> BadRequest:
    return BadRequest(message, code="invalid_json")


def too_deep() -> BadRequest:
    """Return the error of a body that is nested deeper than `MAX_DEPTH`."""
    return _bad_json(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _too_many() -> BadRequest:
    return _bad_json(f"The body has more than {MAX_CONTAINERS} objects and lists. Send several requests.")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
