"""Validates bodies by the published JSON Schemas, and explains violations.

The files under `schema/` are both published and used for validation. Each field's `description` says what is allowed and
becomes the middle of the error message, so the two cannot disagree. A message never quotes the body, which may hold a
prompt.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, Final, cast

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from llama_serving.contract import foreign_names
from llama_serving.contract.strict_json import kind_of
from llama_serving.errors import BadRequest

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_URN: Final = "urn:llama-endpoints:"
_NOT_A_RULE: Final = frozenset(("$schema", "$id", "$defs", "$ref"))

UNSUPPORTED: Final = "left out"
"""Prefix of the description of a field that is listed only to be refused."""

_NO_PROMPTS: Final = frozenset(("stop", "structured_outputs", "tools"))
"""Fields whose empty lists and strings are no empty prompts."""
PROMPT_LISTS: Final = (
    "input_string",
    "prompt",
    "data",
    "input_data",
    "inputs",
    "instances",
    "dataframe_records",
)
"""Fields whose items are the prompts of a request; an error inside one of them gets an index."""


@cache
def schema(name: str) -> Mapping[str, Any]:
    """Return the published schema `name` (the file's name without `.json`) as a JSON value."""
    text = files("llama_serving.contract").joinpath("schema", f"{name}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def validate(body: object, name: str) -> None:
    """Check `body` against the schema `name`, or a part of it such as `azure#/$defs/frame`.

    Raises:
        BadRequest: for the first violation, in the schema's order.
    """
    error = next(_validator(name).iter_errors(body), None)
    if error is not None:
        raise _explain(_Verdict.of(error, body))


def path_of(*steps: str | int) -> str:
    """Return `("input_data", "input_string", 3)` as a client would write it: `input_data.input_string[3]`."""
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _fast_items(
    validator: Any, items: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """Check `items` without a step for each token id: a 4 MiB body holds two million of them."""
    if isinstance(items, dict) and items.get("type") == "integer" and isinstance(instance, list):
        odd = (index for index, item in enumerate(instance) if not _is_token_id(item))
        for index in odd:
            yield from validator.descend(instance[index], items, path=index)
    else:
        yield from Draft202012Validator.VALIDATORS["items"](validator, items, instance, schema)


def _is_token_id(item: Any) -> bool:
    whole = type(item) is int or (type(item) is float and item.is_integer())
    return whole and item >= 0


_Validator: Any = extend(Draft202012Validator, {"items": _fast_items})  # type: ignore[no-untyped-call]


@cache
def _validator(name: str) -> Any:
    return _Validator(_inlined({"$ref": f"{_URN}{name}"}, name))


def _inlined(rule: Any, home: str) -> Any:
    """Return the rule with each `$ref` replaced by its target: looking one up costs more than checking it."""
    if isinstance(rule, list):
        return [_inlined(item, home) for item in rule]
    if not isinstance(rule, dict):
        return rule
    here = {key: _inlined(value, home) for key, value in rule.items() if key not in _NOT_A_RULE}
    if "$ref" not in rule:
        return here
    document, _, pointer = rule["$ref"].partition("#")
    target_home = document.removeprefix(_URN) or home
    target: Any = schema(target_home)
    for step in pointer.split("/")[1:]:
        target = target[step]
    return {**here, **_inlined(target, target_home)}


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A violation: its path, the keyword and rule, the value, and the index of the prompt."""

    steps: tuple[str | int, ...]
    keyword: str
    limit: Any
    rule: Mapping[str, Any]
    value: Any
    index: int | None

    @classmethod
    def of(cls, error: ValidationError, body: Any) -> "_Verdict":
        steps, rule = tuple(error.absolute_path), cast("Mapping[str, Any]", error.schema)
        value = error.instance
        return cls(steps, str(error.validator), error.validator_value, rule, value, _index(body, steps))

    @property
    def allowed(self) -> str:
        return str(self.rule.get("description", "valid"))


def _index(body: Any, steps: Sequence[str | int]) -> int | None:
    """Return the index of the prompt that the path leads to: its place in the first list of prompts on the way."""
    for name, step in pairwise(steps):
        body = body[name]
        if name in PROMPT_LISTS and isinstance(step, int):
            return None if _is_one_prompt(name, body[0]) else step
    return None


def _is_one_prompt(name: str | int, first: Any) -> bool:
    """Return whether a list is one prompt. As in the schemas, the first item decides: a dialog or token ids."""
    if name == "prompt":
        return isinstance(first, (int, float))
    return (
        name == "input_string" and isinstance(first, dict) and not first.keys().isdisjoint(("role", "content"))
    )


def _explain(found: _Verdict) -> BadRequest:
    if found.keyword == "required":
        return _missing_field(found)
    if found.keyword == "additionalProperties":
        return _unknown_field(found)
    param = path_of(*found.steps)
    name = f"`{param}`" if param else "The body"
    if found.allowed.startswith(UNSUPPORTED):
        message, code = f"{name} is not supported by this server. Leave it out.", "unsupported_field"
    else:
        message, code = f"{name} must be {found.allowed}{_shown(found)}.", _code(found)
    return BadRequest(message, code=code, param=param or None, index=found.index)


def _code(found: _Verdict) -> str:
    of_prompts = _NO_PROMPTS.isdisjoint(found.steps)
    empty = found.keyword in ("minLength", "minItems") and not found.value and of_prompts
    return "empty_prompt" if empty else "invalid_value"


def _missing_field(found: _Verdict) -> BadRequest:
    missing = next(name for name in found.limit if name not in found.value)
    param = path_of(*found.steps, missing)
    message = f"`{param}` is missing: send {found.allowed}."
    return BadRequest(message, code="missing_field", param=param, index=found.index)


def _unknown_field(found: _Verdict) -> BadRequest:
    properties = found.rule.get("properties", {})
    unknown = next(str(name) for name in found.value if name not in properties)
    if not _NAME.fullmatch(unknown):
        unknown = "…"  # not a name, possibly a prompt in the wrong place
    accepted = sorted(name for name, rule in properties.items() if _is_offered(rule))
    meant = foreign_names.meant(unknown, accepted)
    hint = f" {meant}" if meant else ""
    param = path_of(*found.steps, unknown)
    message = f"`{param}` is not known.{hint} Accepted here: {', '.join(accepted)}."
    return BadRequest(message, code="unknown_field", param=param, index=found.index)


def _is_offered(rule: Any) -> bool:
    return not (isinstance(rule, dict) and str(rule.get("description", "")).startswith(UNSUPPORTED))


def _shown(found: _Verdict) -> str:
    """Return the end of the message: numbers as they were sent, of everything else only the type."""
    value = found.value
    match found.keyword:
        case "minLength" | "minItems" if not value:
            return "; it is empty"
        case "minItems":
            return f"; it has {len(value)} item{'' if len(value) == 1 else 's'}"
        case "maxItems":
            return f"; it has {len(value)} items, and at most {found.limit} are taken"
        case "enum" | "const" | "pattern" if isinstance(value, str):
            return "; it is another one" if found.keyword != "pattern" else ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f", not {json.dumps(value)}"
    return f", not {kind_of(value)}"
