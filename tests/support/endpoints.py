"""Every endpoint in this process, as functions from a prompt and parameters to what its client would see."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from click.testing import CliRunner

from llama_endpoints.cli import main
from llama_serving.contract import rows
from llama_serving.contract.rows import RowLocation
from llama_serving.errors import BadRequest, ServingError
from llama_serving.hosts import mlflow_pyfunc
from llama_serving.server.protocols import PROTOCOLS
from llama_serving.service.service import Service

VOLATILE: Final = frozenset(("id", "created", "model", "request_id"))
"""Fields that differ from one answer to the next."""


def settled(value: Any) -> Any:
    """The answer without what differs each time."""
    if isinstance(value, dict):
        return {name: settled(item) for name, item in value.items() if name not in VOLATILE}
    return [settled(item) for item in value] if isinstance(value, list) else value


def asked(service: Service, path: str, body: Mapping[str, Any]) -> Any:
    """What our own server answers on a path: the body, or the list of a stream's events.

    Raises:
        ServingError: it refuses.
    """
    adapter = PROTOCOLS[path].of(body)
    request = adapter.parse(body)
    name = service.variant.name
    if request.parameters.stream:
        return asyncio.run(_events(adapter.events(request, service.astream(request), name)))
    return adapter.answer(request, service.generate(request), name)


async def _events(events: AsyncGenerator[Any, None]) -> list[Any]:
    return [event async for event in events]


def model(service: Service) -> mlflow_pyfunc.LlamaModel:
    """The MLflow model around a service."""
    made = mlflow_pyfunc.LlamaModel()
    made._service = service
    return made


def predicted(service: Service, body: Any, *, stream: bool = False) -> Any:
    """What MLflow's `predict` or `predict_stream` returns.

    Raises:
        ServingError: it refuses.
    """
    try:
        if stream:
            return list(model(service).predict_stream(None, body))
        return model(service).predict(None, body)
    except mlflow_pyfunc.ServingException as refusal:
        raise refusal.error from None


def record(service: Service, row: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Any:
    """The record of a row of a batch.

    Raises:
        ServingError: it refuses the row, or the parameters of all rows.
    """
    split = rows.split(row)
    request = rows.request(split, rows.defaults(defaults or {}))
    made = rows.record(RowLocation("f", 1), split, request, service.generate(request), service.variant.name)
    return json.loads(rows.dumps(made))


class _Kept:
    """A service that a command may close."""

    def __init__(self, service: Service) -> None:
        self.generate, self.variant = service.generate, service.variant

    def close(self) -> None:
        """Others need it."""


def scored(service: Service, body: Mapping[str, Any], monkeypatch: Any) -> Any:
    """What `llama-endpoints score` prints.

    Raises:
        ServingError: it refuses.
    """
    monkeypatch.setattr(Service, "start", lambda files, settings: _Kept(service))
    done = CliRunner().invoke(
        main.main,
        ["score", "--model", "nano", "--request", "-"],
        input=json.dumps(body),
        catch_exceptions=False,
    )
    if done.exit_code:
        told = json.loads(done.stderr)["error"]
        raise BadRequest(told["message"], code=told["code"], param=told.get("param"))
    return json.loads(done.stdout)


Sender = Callable[[Service, Any, Any], Any]


@dataclass(frozen=True)
class Endpoint:
    """One place where a request comes in.

    Attributes:
        body: what its client sends for a prompt and parameters; a pair where two things are given apart.
        send: hands the body in; what the client sees comes out.
    """

    name: str
    body: Callable[[Any, Mapping[str, Any]], Any]
    send: Sender
    chat: bool = False

    def ask(self, service: Service, prompt: Any, given: Mapping[str, Any], monkeypatch: Any) -> Any:
        """What its client sees.

        Raises:
            ServingError: it refuses.
        """
        return self.send(service, self.body(prompt, given), monkeypatch)


def _azure(prompt: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"input_data": {"input_string": prompt, "parameters": dict(given)}}


def _inner(prompt: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"input_string": prompt, "parameters": dict(given)}


def _completion(prompt: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": prompt, **given}


def _chat(messages: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": messages, **given}


def _line(url: str, key: str) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
    return lambda prompt, given: {
        "custom_id": "c",
        "method": "POST",
        "url": url,
        "body": {key: prompt, **given},
    }


def path(name: str) -> Sender:
    """To a path of our own server."""
    return lambda service, body, _: asked(service, name, body)


def _row(service: Service, body: Any, _: Any) -> Any:
    return record(service, body)


def _row_and_defaults(service: Service, body: Any, _: Any) -> Any:
    return record(service, *body)


def _predict(service: Service, body: Any, _: Any) -> Any:
    return predicted(service, body)


def _predict_stream(service: Service, body: Any, _: Any) -> Any:
    return predicted(service, body, stream=True)


_COMPLETIONS: Final = _line("/v1/completions", "prompt")
_CHATS: Final = _line("/v1/chat/completions", "messages")
ENDPOINTS: Final = (
    Endpoint("/score", _azure, path("/score")),
    Endpoint("/score inputs", lambda p, g: {"inputs": _inner(p, g)}, path("/score")),
    Endpoint("/invocations", lambda p, g: {"inputs": _inner(p, g)}, path("/invocations")),
    Endpoint("/invocations params", lambda p, g: {"inputs": [p], "params": dict(g)}, path("/invocations")),
    Endpoint("/invocations OpenAI", _completion, path("/invocations")),
    Endpoint("/v1/completions", _completion, path("/v1/completions")),
    Endpoint("/v1/chat/completions", _chat, path("/v1/chat/completions"), chat=True),
    Endpoint("/score dialog", _azure, path("/score"), chat=True),
    Endpoint("predict", _inner, _predict),
    Endpoint("predict OpenAI", _completion, _predict),
    Endpoint("predict_stream", _inner, _predict_stream),
    Endpoint("predict_stream OpenAI", _completion, _predict_stream),
    Endpoint("row", _inner, _row),
    Endpoint("row, --parameters", lambda p, g: ({"input_string": p}, dict(g)), _row_and_defaults),
    Endpoint("row of OpenAI", _completion, _row),
    Endpoint("row of OpenAI, chat", _chat, _row, chat=True),
    Endpoint("row of OpenAI, --parameters", lambda p, g: ({"messages": p}, dict(g)), _row_and_defaults, chat=True),
    Endpoint("batch line", _COMPLETIONS, _row),
    Endpoint("batch line, chat", _CHATS, _row, chat=True),
    Endpoint("batch line, --parameters", lambda p, g: (_CHATS(p, {}), dict(g)), _row_and_defaults, chat=True),
    Endpoint("command score", _azure, scored),
    Endpoint("command score OpenAI", _completion, scored),
)  # fmt: skip
"""All of them; azmlinfsrv's run() calls what `/score` calls."""


def refused(ask: Callable[[], Any]) -> ServingError | None:
    """The refusal, or None where there is an answer."""
    try:
        ask()
    except ServingError as error:
        return error
    return None
