"""Every endpoint in this process, as functions from a prompt and parameters to what its client would see."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from click.testing import CliRunner

from deployment import cli
from llama_serving import pyfunc
from llama_serving.contract import parameters as contract_parameters
from llama_serving.contract import rows
from llama_serving.contract.rows import Place
from llama_serving.contract.validation import validate
from llama_serving.errors import BadRequest, ServingError
from llama_serving.server.app import PROTOCOLS
from llama_serving.service import Service

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
        return asyncio.run(_events(adapter.events(request, service.deltas(request), name)))
    return adapter.answer(request, service.generate(request), name)


async def _events(events: AsyncGenerator[Any, None]) -> list[Any]:
    return [event async for event in events]


def model(service: Service) -> pyfunc.LlamaModel:
    """The MLflow model around a service."""
    made = pyfunc.LlamaModel()
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
    except pyfunc.ServingException as refusal:
        raise refusal.error from None


def record(service: Service, row: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Any:
    """The record of a row of a batch.

    Raises:
        ServingError: it refuses the row, or the parameters of all rows.
    """
    given = dict(defaults or {})
    validate(given, "parameters")
    split = rows.split(row)
    request = rows.request(split, contract_parameters.parse(given))
    made = rows.record(Place("f", 1), split, request, service.generate(request), service.variant.name)
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
        cli.main, ["score", "--model", "nano", "--request", "-"], input=json.dumps(body), catch_exceptions=False
    )
    if done.exit_code:
        told = json.loads(done.stderr)["error"]
        raise BadRequest(told["message"], code=told["code"], param=told.get("param"))
    return json.loads(done.stdout)


Answerer = Callable[[Service, Any, Mapping[str, Any], Any], Any]


@dataclass(frozen=True)
class Endpoint:
    """One place where a request comes in: a prompt and parameters in, what the client sees out."""

    name: str
    ask: Answerer
    chat: bool = False


def _azure(prompt: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"input_data": {"input_string": prompt, "parameters": dict(given)}}


def _line(url: str, key: str, prompt: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"custom_id": "c", "method": "POST", "url": url, "body": {key: prompt, **given}}


ENDPOINTS: Final = (
    Endpoint("/score", lambda s, p, g, m: asked(s, "/score", _azure(p, g))),
    Endpoint("/invocations", lambda s, p, g, m: asked(s, "/invocations", {"inputs": _azure(p, g)["input_data"]})),
    Endpoint("/invocations params", lambda s, p, g, m: asked(s, "/invocations", {"inputs": [p], "params": dict(g)})),
    Endpoint("/invocations OpenAI", lambda s, p, g, m: asked(s, "/invocations", {"prompt": p, **g})),
    Endpoint("/v1/completions", lambda s, p, g, m: asked(s, "/v1/completions", {"prompt": p, **g})),
    Endpoint("/v1/chat/completions", lambda s, p, g, m: asked(s, "/v1/chat/completions", {"messages": p, **g}), chat=True),
    Endpoint("/score dialog", lambda s, p, g, m: asked(s, "/score", _azure(p, g)), chat=True),
    Endpoint("predict", lambda s, p, g, m: predicted(s, _azure(p, g)["input_data"])),
    Endpoint("predict OpenAI", lambda s, p, g, m: predicted(s, {"prompt": p, **g})),
    Endpoint("predict_stream", lambda s, p, g, m: predicted(s, _azure(p, g)["input_data"], stream=True)),
    Endpoint("predict_stream OpenAI", lambda s, p, g, m: predicted(s, {"prompt": p, **g}, stream=True)),
    Endpoint("row", lambda s, p, g, m: record(s, {"input_string": p, "parameters": dict(g)})),
    Endpoint("row, --parameters", lambda s, p, g, m: record(s, {"input_string": p}, g)),
    Endpoint("row of OpenAI", lambda s, p, g, m: record(s, {"prompt": p, **g})),
    Endpoint("row of OpenAI, chat", lambda s, p, g, m: record(s, {"messages": p, **g}), chat=True),
    Endpoint("row of OpenAI, --parameters", lambda s, p, g, m: record(s, {"messages": p}, g), chat=True),
    Endpoint("batch line", lambda s, p, g, m: record(s, _line("/v1/completions", "prompt", p, g))),
    Endpoint("batch line, chat", lambda s, p, g, m: record(s, _line("/v1/chat/completions", "messages", p, g)), chat=True),
    Endpoint("batch line, --parameters", lambda s, p, g, m: record(s, _line("/v1/chat/completions", "messages", p, {}), g),
             chat=True),
    Endpoint("command score", lambda s, p, g, m: scored(s, _azure(p, g), m)),
    Endpoint("command score OpenAI", lambda s, p, g, m: scored(s, {"prompt": p, **g}, m)),
)  # fmt: skip
"""All of them; azmlinfsrv's run() calls what `/score` calls."""


def refused(ask: Callable[[], Any]) -> ServingError | None:
    """The refusal, or None where there is an answer."""
    try:
        ask()
    except ServingError as error:
        return error
    return None
