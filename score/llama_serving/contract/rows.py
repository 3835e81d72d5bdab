"""Rows of a batch. A line of a file -> a request; what became of it -> a record."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final

from llama_serving.contract import inputs, openai, parameters, protocol
from llama_serving.contract import strict_json as json_body
from llama_serving.contract.details import details
from llama_serving.contract.json_lines import json_line
from llama_serving.contract.mlflow import KEYS as MLFLOW_KEYS
from llama_serving.contract.request import Generation, Generations, Parameters, Reply, Request
from llama_serving.contract.validation import schema, validate
from llama_serving.errors import BadRequest, ServingError

URLS: Final = {"/v1/completions": "prompt", "/v1/chat/completions": "messages"}
"""What an OpenAI Batch line may ask for, and the key that its body must have."""

_ONE_PROMPT: Final = ("input_string", "prompt", "messages", "prefix")
_SHORT: Final = (*_ONE_PROMPT, "suffix")
_WHOLE: Final = ("input_data", *MLFLOW_KEYS)
_PROMPTS: Final = (*_SHORT, *_WHOLE)
"""Never carried along: a second prompt in a row is refused, not forgotten."""
_PARAMETERS: Final = frozenset((*parameters.NAMES, *parameters.ALIASES, "params"))
_TAKEN: Final = frozenset((*_PROMPTS, *_PARAMETERS, "parameters", "body", "custom_id", "method", "url"))
"""What a row may be made of; of these a null is as if it were not there, all others are carried along as they are."""
_FREE: Final = frozenset(
    ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
"""Of OpenAI's fields those that have no effect on the text."""


class RowKind(StrEnum):
    """What a row is."""

    SHORT = "short"  # {"input_string": …, "parameters": {…}}
    BODY = "body"  # a whole body of any protocol
    OPENAI_BATCH = "openai batch"  # {"custom_id", "method", "url", "body"}
    TABLE = "table"  # a row of CSV: one prompt, all other columns are the user's
    NOTHING = "nothing"  # no prompt: its id and keys still belong into its record


@dataclass(frozen=True, slots=True)
class Row:
    """A line, taken apart.

    Attributes:
        kind: what the rest of it is.
        content: the part that is a request.
        id: the row's own, whatever it is; need not be unique.
        extra: keys that we don't know; they are carried to the record.
    """

    kind: RowKind
    content: Mapping[str, Any]
    id: Any
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands: `line` is the physical line, from 1. A row of a table may stand nowhere."""

    file: str | None
    line: int | None


def read(raw: bytes) -> Row:
    """One line of JSONL.

    Raises:
        BadRequest: it is no JSON object.
    """
    return split(json_body.decode(raw))


def split(row: Mapping[str, Any]) -> Row:
    """A parsed row. A null is absent: exports write all columns, whatever a row has."""
    given = {key: value for key, value in row.items() if value is not None or key not in _TAKEN}
    if "body" in given and ("custom_id" in given or "url" in given) and given.keys().isdisjoint(_PROMPTS):
        return Row(RowKind.OPENAI_BATCH, given, given.get("custom_id"), {})
    if any(key in given for key in _WHOLE):
        return _take(given, RowKind.BODY, {*_PROMPTS, "parameters", "params"})
    prompts = [key for key in _ONE_PROMPT if key in given]
    if "parameters" not in given and prompts in (["prompt"], ["messages"]):
        return _take(given, RowKind.BODY, {*_PROMPTS, *_openai_keys(given)})
    if any(key in given for key in _SHORT):
        return _take(given, RowKind.SHORT, {*_SHORT, "parameters"})
    return _take(given, RowKind.NOTHING, set())


def defaults(given: Mapping[str, Any], at: str = "parameters") -> Parameters:
    """Parameters for all rows, which stand at the path `at`.

    Raises:
        BadRequest: they are none.
    """
    given = json_body.present(given)
    validate(given, "parameters")
    return parameters.parse(given, at)


def request(row: Row, defaults: Parameters) -> Request:
    """What the row asks for; `defaults` fill what it leaves open.

    Raises:
        BadRequest: it can't be answered.
    """
    if defaults.continue_final_message:
        raise BadRequest("`continue_final_message` belongs to a dialog. Put it into that row, not into the parameters of all.",
                         code="invalid_value", param="parameters.continue_final_message")  # fmt: skip
    parsed = _parse(row)
    if len(parsed.inputs) != 1:
        raise BadRequest(f"The row has {len(parsed.inputs)} prompts. Send one prompt a row.",
                         code="too_many_prompts")  # fmt: skip
    asked = _with_defaults(parsed, defaults)
    if asked.parameters.stream:
        raise BadRequest("A row has one record, and can't stream. Leave `stream` out.",
                         code="streaming_unsupported", param="stream")  # fmt: skip
    return asked


def record(place: Place, row: Row, asked: Request, generations: Generations, model: str) -> dict[str, Any]:
    """The record of an answered row."""
    if row.kind is RowKind.OPENAI_BATCH:
        return _batch_line(row, 200, openai.answer(asked, generations, model))
    sequences = generations[0]
    return {
        **_frame(place, row),
        "output": _one_or_all([s.full_text for s in sequences]),
        "finish_reason": _one_or_all([s.finish_reason for s in sequences]),
        "usage": _usage(sequences),
        "error": None,
        "extra": dict(row.extra),
        **_asked_details(asked, sequences),
    }


def _asked_details(asked: Request, sequences: tuple[Generation, ...]) -> dict[str, Any]:
    if not asked.parameters.with_details and not asked.return_token_ids:
        return {}
    return {"details": details(sequences, with_ids=asked.return_token_ids, as_ids=asked.tokens_as_ids)}


def error_record(place: Place, row: Row | None, error: ServingError) -> dict[str, Any]:
    """The record of a row that could not be answered; `row` is None where not even that could be read."""
    if row is not None and row.kind is RowKind.OPENAI_BATCH:
        return _batch_line(row, error.status, error.body(openai=True))
    return {
        **_frame(place, row),
        "output": None,
        "finish_reason": None,
        "usage": None,
        **error.body(),
        "extra": {} if row is None else dict(row.extra),
    }


def dumps(record: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json_line(record)


def _openai_keys(row: Mapping[str, Any]) -> set[str]:
    """What belongs to an OpenAI body; fields without effect on the text are carried along."""
    name = "openai-chat" if "messages" in row else "openai-completions"
    return set(schema(name)["properties"]) - _FREE


def _with_nothing_misplaced(row: Row, parsed: Request) -> Request:
    """A parameter beside the prompt would be carried along, and the row sampled without it."""
    misplaced = next((name for name in row.extra if name in _PARAMETERS), None)
    if misplaced is not None:
        raise BadRequest(
            f"`{misplaced}` is a parameter and stands beside the prompt. Put it into `parameters`.",
            code="unknown_field",
            param=misplaced,
        )
    return parsed


def _take(row: Mapping[str, Any], kind: RowKind, known: set[str]) -> Row:
    content = {key: value for key, value in row.items() if key in known}
    extra = {key: value for key, value in row.items() if key not in known and key != "id"}
    return Row(kind, content, row.get("id"), extra)


def _parse(row: Row) -> Request:
    match row.kind:
        case RowKind.OPENAI_BATCH:
            return _parse_batch_line(row.content)
        case RowKind.BODY:
            return _with_nothing_misplaced(row, protocol.parse(row.content))
        case RowKind.SHORT:
            return _with_nothing_misplaced(row, _parse_short(row.content))
        case RowKind.TABLE:
            return _parse_short(row.content)
        case RowKind.NOTHING:
            raise BadRequest(
                "The row has no prompt: send input_string, prompt, messages, prefix and suffix, or a whole body.",
                code="missing_field",
            )


def _parse_batch_line(line: Mapping[str, Any]) -> Request:
    url, body = line.get("url"), json_body.present(line["body"])
    key = URLS.get(url) if isinstance(url, str) else None
    if key is None:
        raise BadRequest(f"`url` must be one of {', '.join(URLS)}.", code="invalid_value", param="url")
    if line.get("method", "POST") != "POST":
        raise BadRequest("`method` must be POST.", code="invalid_value", param="method")
    if not isinstance(body, dict) or key not in body:
        raise BadRequest(f"`body` must be an object with `{key}`.", code="missing_field", param=f"body.{key}")
    return openai.parse(body)


def _parse_short(content: Mapping[str, Any]) -> Request:
    content = json_body.present(content)
    validate(content, "row")
    keys = [key for key in _ONE_PROMPT if key in content]
    if len(keys) != 1:
        raise BadRequest(f"The row has {' and '.join(keys)}. Send one prompt a row.", code="competing_fields")
    key = keys[0]
    value = {"prefix": content["prefix"], "suffix": content["suffix"]} if key == "prefix" else content[key]
    given = content.get("parameters") or {}
    asked = parameters.parse(given, "parameters")
    prompt = inputs.item(value, key, continued=bool(asked.continue_final_message))
    return Request((prompt,), asked, Reply.ROWS, (key,), "parameters", spelling=parameters.spelling(given))


def _with_defaults(asked: Request, defaults: Parameters) -> Request:
    given = {
        f.name: value for f in fields(Parameters) if (value := getattr(asked.parameters, f.name)) is not None
    }
    return replace(asked, parameters=replace(defaults, **given))


def _frame(place: Place, row: Row | None) -> dict[str, Any]:
    return {"file": place.file, "line": place.line, "id": None if row is None else row.id}


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _usage(sequences: tuple[Generation, ...]) -> dict[str, int]:
    prompt = sequences[0].usage.prompt_tokens
    completion = sum(sequence.usage.completion_tokens for sequence in sequences)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _batch_line(row: Row, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": row.id,
        "response": {"status_code": status, "request_id": uuid.uuid4().hex, "body": dict(body)},
        "error": None,
    }
