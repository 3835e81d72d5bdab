"""Rows of a batch: a line of a file -> a request, and its result -> a record."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from llama_serving.contract import inputs, openai, parameters, protocol
from llama_serving.contract import strict_json as json_body
from llama_serving.contract.content_filter import results
from llama_serving.contract.details import details
from llama_serving.contract.json_lines import json_line
from llama_serving.contract.mlflow import KEYS as MLFLOW_KEYS
from llama_serving.contract.request import Generation, Generations, Parameters, ReplyShape, Request
from llama_serving.contract.validation import schema, validate
from llama_serving.errors import BadRequest, ServingError

URLS: Final = {"/v1/completions": "prompt", "/v1/chat/completions": "messages"}
"""URLs that an OpenAI Batch line may name, and the key that its body must have."""

_ONE_PROMPT: Final = ("input_string", "prompt", "messages", "prefix")
_SHORT: Final = (*_ONE_PROMPT, "suffix")
_WHOLE: Final = ("input_data", *MLFLOW_KEYS)
_PROMPTS: Final = (*_SHORT, *_WHOLE)
"""Never copied to the record: a second prompt in a row is refused."""
_PARAMETERS: Final = frozenset((*parameters.NAMES, *parameters.ALIASES, "params"))
_TAKEN: Final = frozenset((*_PROMPTS, *_PARAMETERS, "parameters", "body", "custom_id", "method", "url"))
"""Keys with a meaning. A null in one of them counts as absent; other keys are copied to the record."""
_FREE: Final = frozenset(
    ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
"""OpenAI's fields that have no effect on the text."""


class RowKind(StrEnum):
    """The format of a row."""

    SHORT = "short"  # {"input_string": …, "parameters": {…}}
    BODY = "body"  # a whole body of any protocol
    OPENAI_BATCH = "openai batch"  # {"custom_id", "method", "url", "body"}
    TABLE = "table"  # a row of CSV: one prompt, all other columns are copied
    NOTHING = "nothing"  # no prompt: its id and keys are still copied to its record


@dataclass(frozen=True, slots=True)
class InputRow:
    """A row, taken apart.

    Attributes:
        kind: the format of the rest of it.
        content: the part that is the request.
        id: the row's own id, of any type; it need not be unique.
        extra: unknown keys, copied to the record.
    """

    kind: RowKind
    content: Mapping[str, Any]
    id: Any
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RowLocation:
    """Where a row is: `line` is the physical line, from 1; None for a row of a table without lines."""

    file: str | None
    line: int | None


def read(raw: bytes) -> InputRow:
    """Parse one line of JSONL.

    Raises:
        BadRequest: the line is not a JSON object.
    """
    return split(json_body.decode(raw))


def split(row: Mapping[str, Any]) -> InputRow:
    """Take a parsed row apart. A null counts as absent, since exports write every column of every row."""
    given = {key: value for key, value in row.items() if value is not None or key not in _TAKEN}
    if "body" in given and ("custom_id" in given or "url" in given) and given.keys().isdisjoint(_PROMPTS):
        return InputRow(RowKind.OPENAI_BATCH, given, given.get("custom_id"), {})
    if any(key in given for key in _WHOLE):
        return _take(given, RowKind.BODY, {*_PROMPTS, "parameters", "params"})
    prompts = [key for key in _ONE_PROMPT if key in given]
    if "parameters" not in given and prompts in (["prompt"], ["messages"]):
        return _take(given, RowKind.BODY, {*_PROMPTS, *_openai_keys(given)})
    if any(key in given for key in _SHORT):
        return _take(given, RowKind.SHORT, {*_SHORT, "parameters"})
    return _take(given, RowKind.NOTHING, set())


def defaults(given: Mapping[str, Any], at: str = "parameters") -> Parameters:
    """Return parameters for all rows, found at the path `at`.

    Raises:
        BadRequest: they are invalid.
    """
    given = json_body.present(given)
    validate(given, "parameters")
    return parameters.parse(given, at)


def request(row: InputRow, defaults: Parameters) -> Request:
    """Return the request of a row; `defaults` fill what the row does not set.

    Raises:
        BadRequest: the row is invalid.
    """
    if defaults.continue_final_message:
        raise BadRequest("`continue_final_message` belongs to a dialog. Put it into that row, not into the parameters of all.",
                         code="invalid_value", param="parameters.continue_final_message")  # fmt: skip
    with parameters.completed_by(defaults):
        parsed = _parse(row)
    if len(parsed.inputs) != 1:
        raise BadRequest(f"The row has {len(parsed.inputs)} prompts. Send one prompt a row.",
                         code="too_many_prompts")  # fmt: skip
    request = replace(parsed, parameters=parameters.completed(parsed.parameters, defaults))
    parameters.refuse_nothing(request.parameters, request.path("max_new_tokens"))
    if request.parameters.stream:
        raise BadRequest("A row has one record, and can't stream. Leave `stream` out.",
                         code="streaming_unsupported", param="stream")  # fmt: skip
    return request


def record(
    place: RowLocation, row: InputRow, request: Request, generations: Generations, model: str
) -> dict[str, Any]:
    """Return the record of a row that succeeded."""
    if row.kind is RowKind.OPENAI_BATCH:
        return _batch_line(row, 200, openai.answer(request, generations, model))
    sequences = generations[0]
    return {
        **_frame(place, row),
        "output": _one_or_all([s.full_text for s in sequences]),
        "finish_reason": _one_or_all([s.finish_reason for s in sequences]),
        "usage": _usage(sequences),
        "error": None,
        "extra": dict(row.extra),
        **_receipt(sequences),
        **_details(request, sequences),
        **results([finding for sequence in sequences for finding in sequence.findings]),
    }


def _receipt(sequences: tuple[Generation, ...]) -> dict[str, Any]:
    """Return the receipt, or a list of them where there are several outputs; nothing where none was requested."""
    made = [one.receipt.to_dict() for one in sequences if one.receipt is not None]
    return {"receipt": _one_or_all(made)} if made else {}


def _details(request: Request, sequences: tuple[Generation, ...]) -> dict[str, Any]:
    if not request.parameters.with_figures and not request.return_token_ids:
        return {}
    return {"details": details(sequences, with_ids=request.return_token_ids, as_ids=request.tokens_as_ids)}


def error_record(place: RowLocation, row: InputRow | None, error: ServingError) -> dict[str, Any]:
    """Return the record of a row that failed; `row` is None if the line could not be parsed."""
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
    """Return a record as one line of JSON."""
    return json_line(record)


def _openai_keys(row: Mapping[str, Any]) -> set[str]:
    """Return the keys that belong to an OpenAI body; fields without effect on the text are copied to the record."""
    name = "openai-chat" if "messages" in row else "openai-completions"
    return set(schema(name)["properties"]) - _FREE


def _with_nothing_misplaced(row: InputRow, parsed: Request) -> Request:
    """Refuse a parameter beside the prompt: it would be copied, and the row sampled without it."""
    misplaced = next((name for name in row.extra if name in _PARAMETERS), None)
    if misplaced is not None:
        raise BadRequest(
            f"`{misplaced}` is a parameter and stands beside the prompt. Put it into `parameters`.",
            code="unknown_field",
            param=misplaced,
        )
    return parsed


def _take(row: Mapping[str, Any], kind: RowKind, known: set[str]) -> InputRow:
    content = {key: value for key, value in row.items() if key in known}
    extra = {key: value for key, value in row.items() if key not in known and key != "id"}
    return InputRow(kind, content, row.get("id"), extra)


def _parse(row: InputRow) -> Request:
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
    parsed = parameters.parse(given, "parameters")
    prompt = inputs.item(value, key, continued=bool(parsed.continue_final_message))
    return Request(
        (prompt,), parsed, ReplyShape.ROWS, (key,), "parameters", spelling=parameters.spelling(given)
    )


def _frame(place: RowLocation, row: InputRow | None) -> dict[str, Any]:
    return {"file": place.file, "line": place.line, "id": None if row is None else row.id}


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _usage(sequences: tuple[Generation, ...]) -> dict[str, int]:
    prompt = sequences[0].usage.prompt_tokens
    completion = sum(sequence.usage.completion_tokens for sequence in sequences)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _batch_line(row: InputRow, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": row.id,
        "response": {"status_code": status, "request_id": uuid.uuid4().hex, "body": dict(body)},
        "error": None,
    }
