"""JSON schemas -> schemas that llguidance holds exactly; anything else is an error that names the keyword.

Read as draft 2020-12, where annotations hold nobody to anything: they are taken out. Patterns are rewritten by `patterns`. What llguidance
itself refuses (`oneOf` of options that may overlap, a schema that nothing meets) it refuses at the compilation.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from llama_serving.constraints import patterns
from llama_serving.constraints.names import Names, OtherNames
from llama_serving.errors import BadRequest

MOST_DEPTH: Final = 48
MOST_ITEMS: Final = 1000
"""The largest `minItems` and `maxItems`: each item is a part of the grammar."""
MOST_JOINS: Final = 16
"""Schemas in all `allOf` beyond the first in each, and patterns beside such keywords."""
MOST_REFERENCES: Final = 300
"""Different targets of `$ref`. A chain of them is compiled by recursion, here and in vLLM."""
MOST_CHARACTERS: Final = 10_000
"""The largest `minLength` and `maxLength`."""
LARGEST_INTEGER: Final = 2**53
"""Beyond it a 64-bit float, as every JSON number is for many readers, has no exact value."""
LONGEST_NAME: Final = 80

ANNOTATIONS: Final = frozenset(
    ("$comment", "$schema", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
     "contentMediaType", "contentEncoding", "contentSchema")
)  # fmt: skip
"""Keywords that hold nobody to anything (draft 2020-12, sections 8.3 of core, 8 and 9 of validation). So are names that begin with `x-`."""

LEFT_OUT: Final = object()
"""In the place of a value: its keyword is left out, since the schema says the same without it."""
TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")

_YEAR: Final = r"(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])"
_FOURTH: Final = r"(?:0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR: Final = rf"(?:\d\d{_FOURTH}|{_FOURTH}00)"
_DATE: Final = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    rf"|{_LEAP_YEAR}-02-29)"
)
_TIME: Final = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
FORMATS: Final[Mapping[str, str]] = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "uuid": r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    "ipv4": r"^(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$",
    "email": r"^[A-Za-z0-9_+-]{1,32}(?:\.[A-Za-z0-9_+-]{1,15}){0,1}@[A-Za-z0-9]{1,30}(?:-[A-Za-z0-9]{1,30})?(?:\.[A-Za-z]{2,20}){1,3}$",
    "hostname": r"^[A-Za-z0-9]{1,30}(?:-[A-Za-z0-9]{1,30})?(?:\.[A-Za-z]{1,30}(?:-[A-Za-z0-9]{1,30})?){0,3}$",
    "duration": r"^P(?:\d{1,9}W|\d{1,9}D|(?:\d{1,9}D)?T\d{1,9}(?:H|M|S|H\d{1,9}M|M\d{1,9}S|H\d{1,9}M\d{1,9}S))$",
}
"""The formats that are held, each as a pattern of RFC 3339 and the like, or a part of it that no reader disputes."""


def exact(schema: Any, at: str) -> Any:
    """Return an equal schema of the keywords that llguidance holds.

    Args:
        schema: a JSON value.
        at: its path in the body, for messages.

    Raises:
        BadRequest: a keyword is unknown or can't be held exactly, or the schema is none.
    """
    if schema is False:
        raise _refused(at, "nothing meets the schema `false`")
    if not isinstance(schema, dict) and schema is not True:
        raise _refused(at, "a schema is an object")
    _check_joins(schema, at)
    made = _Walk(schema).schema(schema, at, 0)
    return {} if made is True else made


def _check_joins(schema: Any, at: str) -> None:
    """Refuse a schema that joins many others, or refers to many, before anything is done for each of them."""
    joins, references, left = 0, set(), [schema]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            joined, reference = one.get("allOf"), one.get("$ref")
            joins += max(0, len(joined) - 1) if isinstance(joined, list) else 0
            references |= {reference} if isinstance(reference, str) else set()
            left += one.values()
        elif isinstance(one, list):
            left += one
    if joins > MOST_JOINS:
        raise _refused(f"{at}.allOf", f"more than {MOST_JOINS} schemas are joined. Join them yourself")
    if len(references) > MOST_REFERENCES:
        raise _refused(f"{at}.$ref", f"the schema refers to more than {MOST_REFERENCES} of its parts")


def rebased(schema: Any, prefix: str) -> Any:
    """Return an exact schema whose local references begin at the JSON pointer `prefix`, so that it can be a part of another."""
    if isinstance(schema, list):
        return [rebased(item, prefix) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _rebased(name, value, prefix) for name, value in schema.items()}


def _rebased(name: str, value: Any, prefix: str) -> Any:
    if name in ("const", "enum"):
        return value
    if name == "$ref":
        return f"#{prefix}{value.removeprefix('#')}"
    if name in _NAMED and isinstance(value, dict):
        return {key: rebased(item, prefix) for key, item in value.items()}
    return rebased(value, prefix)


class _Walk:
    """One schema, keyword by keyword."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._joins = 0
        self._others = OtherNames(root, self.target)

    def schema(self, schema: Any, at: str, depth: int) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise _refused(at, "a schema is an object, true or false")
        if depth > MOST_DEPTH:
            raise _refused(at, f"the schema is nested deeper than {MOST_DEPTH} levels")
        self._count_joins(schema, at)
        made: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in ANNOTATIONS or keyword.startswith("x-"):
                continue
            path = f"{at}.{keyword}"
            hold = _KEYWORDS.get(keyword)
            if hold is None:
                raise _refused(path, f"the keyword `{_shown(keyword)}` is not supported. {_HELD}")
            kept = hold(self, value, path, depth + 1, schema)
            if kept is not LEFT_OUT:
                made[keyword] = kept
        return _with_format(_with_names(made, self._others.of(schema), at))

    def _count_joins(self, schema: Mapping[str, Any], at: str) -> None:
        """Refuse a schema that joins many others: what all their patterns match takes long to find."""
        parts, joining = schema.get("allOf"), [word for word in _JOINING if word in schema]
        self._joins += max(0, len(parts) - 1) if isinstance(parts, list) else 0
        self._joins += bool(joining) and not schema.keys().isdisjoint(("pattern", "format"))
        if self._joins > MOST_JOINS:
            raise _refused(
                f"{at}.{joining[0]}", f"more than {MOST_JOINS} schemas are joined. Join them yourself"
            )

    def each(self, value: Any, path: str, depth: int, _: Any) -> Any:
        if not isinstance(value, list) or not value:
            raise _refused(path, "it must be a list of at least one schema")
        return [self.schema(item, f"{path}[{index}]", depth) for index, item in enumerate(value)]

    def named(self, value: Any, path: str, depth: int, _: Any) -> Any:
        if not isinstance(value, dict):
            raise _refused(path, "it must be an object of schemas")
        return {name: self.schema(item, f"{path}.{_shown(name)}", depth) for name, item in value.items()}

    def one(self, value: Any, path: str, depth: int, _: Any) -> Any:
        return self.schema(value, path, depth)

    def patterned(self, value: Any, path: str, depth: int, beside: Any) -> Any:
        held = self.named(value, path, depth, beside)
        return {_anchored(pattern, path): item for pattern, item in held.items()}

    def ref(self, value: Any, path: str, _: int, __: Any) -> Any:
        if not isinstance(value, str) or not _POINTER.fullmatch(value):
            raise _refused(path, "a reference must be a JSON pointer inside the schema, such as `#/$defs/name`")
        if not isinstance(self.target(value), (dict, bool)):
            raise _refused(path, "no schema stands where the reference points")
        return value

    def target(self, pointer: str) -> Any:
        """Return what a JSON pointer leads to through keywords that have schemas; None if that is nothing."""
        target, steps = self._root, pointer.split("/")[1:]
        while steps:
            keyword = steps.pop(0)
            inside = target.get(keyword) if isinstance(target, dict) and keyword in _SCHEMAS_INSIDE else None
            target = _member(inside, steps.pop(0)) if steps and keyword not in _ONE_INSIDE else inside
        return target


def _member(inside: Any, step: str) -> Any:
    if isinstance(inside, list):
        usable = step.isascii() and step.isdecimal() and len(step) <= 6 and int(step) < len(inside)
        return inside[int(step)] if usable else None
    return inside.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(inside, dict) else None


def _type(_: Any, value: Any, path: str, __: int, ___: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        raise _refused(path, f"a type is one of {', '.join(TYPES)}, or a list of them")
    return value


def _constant(_: Any, value: Any, path: str, __: int, ___: Any) -> Any:
    _check_numbers(value, path)
    return value


def _enum(_: Any, value: Any, path: str, __: int, ___: Any) -> Any:
    if not isinstance(value, list) or not value:
        raise _refused(path, "it must be a list of at least one value")
    _check_numbers(value, path)
    return value


def _check_numbers(value: Any, path: str) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_numbers(item, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _number(None, value, path, 0, None)


def _number(_: Any, value: Any, path: str, __: int, ___: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refused(path, "it must be a number")
    small = isinstance(value, float) and value and not abs(value) >= 1e-9
    if abs(value) > LARGEST_INTEGER or not math.isfinite(value) or small:
        raise _refused(path, "a number must be 0, or between 1e-9 and 2^53 without its sign, to be exact")
    return value


def _multiple(_: Any, value: Any, path: str, __: int, ___: Any) -> Any:
    _number(None, value, path, 0, None)
    if value <= 0 or value != int(value):
        raise _refused(path, "only integers above 0 are held: a reader's floats make other multiples uncertain")
    return int(value)


def _count(most: int) -> "_Hold":
    def hold(_: Any, value: Any, path: str, __: int, ___: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        whole = number and value == int(value)
        if not whole or not 0 <= value <= most:
            raise _refused(path, f"it must be an integer from 0 to {most}")
        return int(value)

    return hold


def _least_properties(_: Any, value: Any, path: str, depth: int, beside: Any) -> Any:
    """Hold `minProperties` where one property is enough: a name that comes twice would be counted twice."""
    number = _count(MOST_ITEMS)(None, value, path, depth, beside)
    required = beside.get("required")
    if isinstance(required, list) and number <= len(set(map(str, required))):
        return LEFT_OUT
    if number > 1:
        raise _refused(path, "more than 1 is held only where `required` names as many")
    return number


def _required(_: Any, value: Any, path: str, __: int, ___: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _refused(path, "it must be a list of names")
    return value


def _pattern(_: Any, value: Any, path: str, __: int, ___: Any) -> Any:
    if not isinstance(value, str):
        raise _refused(path, "it must be a string")
    return _anchored(value, path)


def _anchored(pattern: str, path: str) -> str:
    try:
        return f"^(?:{patterns.found(pattern)})$"
    except patterns.PatternError as error:
        raise _refused(path, str(error)) from None


def _format(_: Any, value: Any, path: str, __: int, ___: Any) -> Any:
    if not isinstance(value, str) or value not in FORMATS:
        raise _refused(path, f"the formats that are held are {', '.join(FORMATS)}")
    return value


def _not_unique(_: Any, value: Any, path: str, __: int, ___: Any) -> Any:
    if value is not False:
        raise _refused(path, "unique items can't be held. Leave it out, or send `false`")
    return LEFT_OUT


def _own_id(_: Any, value: Any, path: str, depth: int, ___: Any) -> Any:
    if depth > 1 or not isinstance(value, str):
        raise _refused(path, "a schema inside of the schema can't have an identifier of its own")
    return LEFT_OUT


def _with_format(made: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with its format as a pattern."""
    name = made.pop("format", None)
    if name is None:
        return made
    pattern = _anchored(FORMATS[name], "format")
    if "pattern" not in made:
        return {**made, "pattern": pattern}
    return {"allOf": [made, {"pattern": pattern}]}


def _with_names(made: dict[str, Any], others: Names, at: str) -> dict[str, Any]:
    """Return the schema with every name that its object may have: see `names`."""
    own = made.get("properties", {})
    known = {**dict.fromkeys(made.get("required", ())), **dict.fromkeys(sorted(others))}
    further = made.get("additionalProperties", True)
    closed = (
        "additionalProperties" not in made
        and "patternProperties" not in made
        and ("properties" in made or others)
    )
    if not (own or made.get("required")) and not (closed and "properties" in made):
        return made
    if closed:
        missing = {name: True for name in known if name not in own}
        return {**made, "properties": {**own, **missing}, "additionalProperties": False}
    return made if further is False else _with_free_names(made, further, at)


def _with_free_names(made: dict[str, Any], further: Any, at: str) -> dict[str, Any]:
    """Return the schema with further properties named by a pattern that leaves out the known ones.

    llguidance compares further names with the known ones as they are written, and a name can be written with escapes.
    """
    if "patternProperties" in made:
        raise _refused(
            f"{at}.patternProperties", "beside `properties` it is held only with `additionalProperties: false`"
        )
    properties = {
        **made.get("properties", {}),
        **{name: further for name in made.get("required", ()) if name not in made.get("properties", {})},
    }
    if any(len(name) > LONGEST_NAME for name in properties):
        raise _refused(f"{at}.properties", f"a name has at most {LONGEST_NAME} characters")
    pattern = f"^(?:{patterns.other_than(properties)})$"
    rest = {key: value for key, value in made.items() if key not in ("additionalProperties", "properties")}
    return {
        **rest,
        "properties": properties,
        "patternProperties": {pattern: further},
        "additionalProperties": False,
    }


_Hold = Callable[[Any, Any, str, int, Any], Any]
_JOINING: Final = ("allOf", "anyOf", "oneOf", "$ref")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions")
_POINTER: Final = re.compile(r"#(?:/[^/%]+)*")
_ONE_INSIDE: Final = ("items", "additionalProperties")
_SCHEMAS_INSIDE: Final = (
    *_ONE_INSIDE,
    "$defs",
    "definitions",
    "properties",
    "anyOf",
    "oneOf",
    "allOf",
    "prefixItems",
)
"""Keywords that a reference may lead through."""
_KEYWORDS: Final[Mapping[str, _Hold]] = {
    "type": _type,
    "const": _constant,
    "enum": _enum,
    "anyOf": _Walk.each,
    "oneOf": _Walk.each,
    "allOf": _Walk.each,
    "$ref": _Walk.ref,
    "$id": _own_id,
    "$defs": _Walk.named,
    "definitions": _Walk.named,
    "properties": _Walk.named,
    "patternProperties": _Walk.patterned,
    "additionalProperties": _Walk.one,
    "required": _required,
    "minProperties": _least_properties,
    "maxProperties": _count(MOST_ITEMS),
    "items": _Walk.one,
    "prefixItems": _Walk.each,
    "minItems": _count(MOST_ITEMS),
    "maxItems": _count(MOST_ITEMS),
    "uniqueItems": _not_unique,
    "minLength": _count(MOST_CHARACTERS),
    "maxLength": _count(MOST_CHARACTERS),
    "pattern": _pattern,
    "format": _format,
    "minimum": _number,
    "maximum": _number,
    "exclusiveMinimum": _number,
    "exclusiveMaximum": _number,
    "multipleOf": _multiple,
}
"""Each keyword, and what checks and rewrites its value; or `LEFT_OUT`."""
_HELD: Final = f"Held are {', '.join(_KEYWORDS)}"
_SHOWN: Final = re.compile(r"[\w$.@ -]{1,64}")


def _shown(name: str) -> str:
    return name if _SHOWN.fullmatch(name) else "…"


def _refused(at: str, why: str) -> BadRequest:
    return BadRequest(f"`{at}` can't be held: {why}.", code="unsupported_constraint", param=at)
