"""Azure's `/score`: its six kinds of request bodies, and their responses."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_serving.contract import inputs, parameters, receipt
from llama_serving.contract.adapter import EventWriter, ProtocolAdapter
from llama_serving.contract.details import details
from llama_serving.contract.request import Body, Delta, Generation, Generations, Input, ReplyShape, Request
from llama_serving.contract.strict_json import present
from llama_serving.contract.validation import validate
from llama_serving.errors import BadRequest

KEYS: Final = ("input_data", "inputs")
"""Keys of the prompts; `inputs` is what LangChain's GPT-2 formatter sends to Azure endpoints."""


def parse(body: Body) -> Request:
    """Parse a body of `/score`.

    Raises:
        BadRequest: the body is none of the six kinds.
    """
    body = present(body)
    given = [key for key in KEYS if key in body]
    if len(given) > 1:
        raise BadRequest(
            f"`{given[0]}` and `{given[1]}` are the same. Send one of them.",
            code="competing_fields",
            param=given[1],
        )
    validate(body, "azure")
    (key,) = given
    return request_of(body[key], places(body, key), key)


def places(body: Body, key: str) -> dict[str, Any]:
    """Return the paths where a body may hold parameters, and their values; its prompts are at `key`."""
    data = body[key]
    inner = data.get("parameters") if isinstance(data, dict) else None
    return {f"{key}.parameters": inner, "parameters": body.get("parameters"), "params": body.get("params")}


def request_of(data: Any, places: Mapping[str, Any], at: str) -> Request:
    """Return the request in an `input_data` value at the path `at` (MLflow calls it `inputs`)."""
    path, given = parameters.only_one(places)
    parsed = parameters.parse(given, path)
    prompts, paths, reply = _prompts(data, at, continued=bool(parsed.continue_final_message))
    return Request(
        inputs=prompts,
        parameters=parsed,
        reply=reply,
        paths=paths,
        parameters_path=path,
        spelling=parameters.spelling(given),
    )


def answer(request: Request, generations: Generations) -> Any:
    """Return the response body, in the shape that belongs to the request's body; a blocked text adds details."""
    with_details = _with_details(request, [sequence for sequences in generations for sequence in sequences])
    if request.reply is ReplyShape.OUTPUT:
        sequences = generations[0]
        output = sequences[0].full_text if len(sequences) == 1 else [s.full_text for s in sequences]
        return {"output": output, **({"details": _details(sequences)} if with_details else {})}
    if request.reply is ReplyShape.TEXTS and not with_details:
        return [_texts(sequences) for sequences in generations]
    return [_row(sequences, with_details=with_details) for sequences in generations]


class Events:
    """Events of a `/score` stream: `{"<sequence>": "piece"}` for each piece, then details if they were requested."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._ended: list[Generation] = []

    def of(self, delta: Delta) -> list[dict[str, Any]]:
        """Return the events of one piece: one or none."""
        if delta.generation is not None:
            self._ended.append(delta.generation)
        return [{str(delta.index): delta.text}] if delta.text else []

    def last(self) -> list[dict[str, Any]]:
        """Return the events after the last sequence has ended."""
        return [{"details": _details(self._ended)}] if _with_details(self._request, self._ended) else []


def _with_details(request: Request, sequences: Sequence[Generation]) -> bool:
    """Return whether details are requested, or needed to say that a text was blocked."""
    blocked = any(sequence.finish_reason == "content_filter" for sequence in sequences)
    return request.parameters.with_details or blocked


def _texts(sequences: tuple[Generation, ...]) -> Any:
    texts = [sequence.full_text for sequence in sequences]
    return texts[0] if len(texts) == 1 else texts


def _row(sequences: tuple[Generation, ...], *, with_details: bool) -> dict[str, Any]:
    row: dict[str, Any] = {str(number): s.full_text for number, s in enumerate(sequences)}
    if with_details:
        row["details"] = _details(sequences)
    return row


def _details(sequences: Sequence[Generation]) -> list[dict[str, Any]]:
    """Return the details of each sequence, with its receipt if that was requested."""
    return [{**entry, **receipt.field(one)} for entry, one in zip(details(sequences), sequences, strict=True)]


def _prompts(data: Any, at: str, *, continued: bool) -> tuple[tuple[Input, ...], tuple[str, ...], ReplyShape]:
    if isinstance(data, dict) and "columns" in data:
        _check_index(data, at)
        rows = (row[0] if len(row) == 1 else {"prefix": row[0], "suffix": row[1]} for row in data["data"])
        return *_items(list(rows), f"{at}.data", continued=continued), ReplyShape.ROWS
    reply = ReplyShape.TEXTS
    if isinstance(data, dict):
        data, at, reply = data["input_string"], f"{at}.input_string", ReplyShape.ROWS
    if inputs.is_dialog(data):
        return (inputs.dialog(data, at, continued=continued),), (at,), ReplyShape.OUTPUT
    if isinstance(data, list):
        return *_items(data, at, continued=continued), reply
    return (inputs.item(data, at),), (at,), reply


def _check_index(table: Mapping[str, Any], at: str) -> None:
    index, rows = table.get("index"), len(table["data"])
    if index is not None and len(index) != rows:
        raise BadRequest(
            f"`{at}.index` has {len(index)} entries for {rows} rows. Send one for each row, or leave it out.",
            code="invalid_value",
            param=f"{at}.index",
        )


def _items(values: list[Any], at: str, *, continued: bool) -> tuple[tuple[Input, ...], tuple[str, ...]]:
    paths = tuple(f"{at}[{index}]" for index in range(len(values)))
    items = (inputs.item(value, paths[i], i, continued=continued) for i, value in enumerate(values))
    return tuple(items), paths


class Azure(ProtocolAdapter):
    """See `ProtocolAdapter`."""

    def parse(self, body: Body) -> Request:
        """See `ProtocolAdapter.parse`."""
        return parse(body)

    def answer(self, request: Request, generations: Generations, model: str) -> Any:
        """See `ProtocolAdapter.answer`."""
        del model
        return answer(request, generations)

    def writer(self, request: Request, model: str) -> EventWriter:
        """See `ProtocolAdapter.writer`; with `details`, one last event has them for all sequences."""
        del model
        return Events(request)
