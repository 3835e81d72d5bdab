"""Azure's `/score`: its six kinds of bodies, and their answers."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

from llama_serving.contract import inputs, parameters
from llama_serving.contract.adapter import Adapter
from llama_serving.contract.details import details
from llama_serving.contract.request import Body, Delta, Generation, Generations, Input, Reply, Request
from llama_serving.contract.strict_json import present
from llama_serving.contract.validation import validate
from llama_serving.errors import BadRequest, ServingError

KEYS: Final = ("input_data", "inputs")
"""Where the prompts stand; `inputs` is what LangChain's formatter for GPT-2 sends to an endpoint of Azure's."""


def parse(body: Body) -> Request:
    """A body of `/score`.

    Raises:
        BadRequest: it is none of bodies 1 to 6.
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
    """Where the parameters of a body may stand, and what stands there; its prompts stand at `key`."""
    data = body[key]
    inner = data.get("parameters") if isinstance(data, dict) else None
    return {f"{key}.parameters": inner, "parameters": body.get("parameters"), "params": body.get("params")}


def request_of(data: Any, places: Mapping[str, Any], at: str) -> Request:
    """The request in an `input_data` value that stands at the path `at` (MLflow calls it `inputs`)."""
    path, given = parameters.only_one(places)
    asked = parameters.parse(given, path)
    prompts, paths, reply = _prompts(data, at, continued=bool(asked.continue_final_message))
    return Request(
        inputs=prompts,
        parameters=asked,
        reply=reply,
        paths=paths,
        parameters_path=path,
        spelling=parameters.spelling(given),
    )


def answer(request: Request, generations: Generations) -> Any:
    """The body of the answer, in the shape that the request's body asks for."""
    with_details = request.parameters.with_details
    if request.reply is Reply.OUTPUT:
        sequences = generations[0]
        output = sequences[0].full_text if len(sequences) == 1 else [s.full_text for s in sequences]
        return {"output": output, **({"details": details(sequences)} if with_details else {})}
    if request.reply is Reply.TEXTS and not with_details:
        return [_texts(sequences) for sequences in generations]
    return [_row(sequences, with_details=with_details) for sequences in generations]


class Events:
    """A stream of `/score`: `{"<sequence>": "piece"}` for each piece, and details of all sequences where they are asked for."""

    def __init__(self, request: Request) -> None:
        self._with_details = request.parameters.with_details
        self._ended: list[Generation] = []

    def of(self, delta: Delta) -> list[dict[str, Any]]:
        """What one piece is worth: an event, or nothing."""
        if delta.generation is not None:
            self._ended.append(delta.generation)
        return [{str(delta.index): delta.text}] if delta.text else []

    def last(self) -> list[dict[str, Any]]:
        """What comes when all sequences have ended."""
        return [{"details": details(self._ended)}] if self._with_details else []


def _texts(sequences: tuple[Generation, ...]) -> Any:
    texts = [sequence.full_text for sequence in sequences]
    return texts[0] if len(texts) == 1 else texts


def _row(sequences: tuple[Generation, ...], *, with_details: bool) -> dict[str, Any]:
    row: dict[str, Any] = {str(number): s.full_text for number, s in enumerate(sequences)}
    if with_details:
        row["details"] = details(sequences)
    return row


def _prompts(data: Any, at: str, *, continued: bool) -> tuple[tuple[Input, ...], tuple[str, ...], Reply]:
    if isinstance(data, dict) and "columns" in data:
        _check_index(data, at)
        rows = (row[0] if len(row) == 1 else {"prefix": row[0], "suffix": row[1]} for row in data["data"])
        return *_items(list(rows), f"{at}.data", continued=continued), Reply.ROWS
    reply = Reply.TEXTS
    if isinstance(data, dict):
        data, at, reply = data["input_string"], f"{at}.input_string", Reply.ROWS
    if inputs.is_dialog(data):
        return (inputs.dialog(data, at, continued=continued),), (at,), Reply.OUTPUT
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


class Azure:
    """See `Adapter`."""

    def of(self, body: Body) -> Adapter:
        """See `Adapter.of`."""
        del body
        return self

    def parse(self, body: Body) -> Request:
        """See `Adapter.parse`."""
        return parse(body)

    def answer(self, request: Request, generations: Generations, model: str) -> Any:
        """See `Adapter.answer`."""
        del model
        return answer(request, generations)

    async def events(
        self, request: Request, deltas: AsyncGenerator[Delta, None], model: str
    ) -> AsyncGenerator[Any, None]:
        """See `Adapter.events`; with `details` they come last, for all sequences."""
        del model
        made = Events(request)
        async with aclosing(deltas):
            async for delta in deltas:
                for event in made.of(delta):
                    yield event
        for event in made.last():
            yield event

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """See `Adapter.error`."""
        return error.body(request_id)
