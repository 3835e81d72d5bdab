"""The API's description: OpenAPI 3.1 with the published schemas, and Swagger 2.0 with an example.

azmlinfsrv serves the files beside the scoring script; `python -m llama_endpoints.devtools.reference` writes them.
"""

from dataclasses import dataclass
from typing import Any, Final

from llama_serving.contract.openai import PREFIXES
from llama_serving.contract.validation import schema

SCHEMAS: Final = ("azure", "prompts", "parameters", "error", "answers")
_ANSWERS: Final = ("error", "answers", "openai-answers")
EXAMPLE: Final = {
    "input_data": {
        "input_string": ["Develop a Python function to sort a list of integers in ascending order"],
        "parameters": {"return_full_text": False, "do_sample": True},
    }
}
ANSWER: Final = [{"0": "text"}]
_TITLE: Final = {
    "title": "llama-endpoints",
    "version": "1",
    "description": "Code Llama and Llama-2 completions",
}
_WRONG: Final = "What was wrong, what is allowed, what to do"


def openapi() -> dict[str, Any]:
    """Return OpenAPI 3.1, which has the schema language of the files under `schema/`."""
    error = {"description": _WRONG, "content": _json({"$ref": "#/components/schemas/error"})}
    rule = {"$ref": "#/components/schemas/answers/$defs/azure"}
    answer = {"content": _json(rule, ANSWER), "description": "One row a prompt, or the dialog's answer"}
    operation = {
        "summary": "Complete, chat or fill in",
        "requestBody": {"required": True, "content": _json({"$ref": "#/components/schemas/azure"}, EXAMPLE)},
        "responses": {"200": answer, **dict.fromkeys(_STATUSES, error)},
    }
    return {
        "openapi": "3.1.0",
        "info": _TITLE,
        "paths": {"/score": {"post": operation}},
        "components": {"schemas": {name: _local(schema(name), name) for name in SCHEMAS}},
    }


@dataclass(frozen=True, slots=True)
class _Route:
    """A path of our own server that generates; request, response and event schemas by name."""

    summary: str
    bodies: tuple[str, ...]
    answers: tuple[str, ...]
    events: tuple[str, ...]


_COMPLETION: Final = _Route(
    "OpenAI's completions; `suffix` fills in",
    ("openai-completions",),
    ("openai-answers/$defs/completion",),
    ("openai-answers/$defs/completion_event",),
)
_CHAT: Final = _Route(
    "OpenAI's chat completions",
    ("openai-chat",),
    ("openai-answers/$defs/chat",),
    ("openai-answers/$defs/chat_event",),
)
_AZURE: Final = _Route(
    "Azure's body: complete, chat or fill in", ("azure",), ("answers/$defs/azure",), ("answers/$defs/event",)
)
_MLFLOW: Final = _Route(
    "MLflow's body, or one of OpenAI's",
    ("mlflow", *_COMPLETION.bodies, *_CHAT.bodies),
    ("answers/$defs/mlflow", *_COMPLETION.answers, *_CHAT.answers),
    (*_AZURE.events, *_COMPLETION.events, *_CHAT.events),
)
_SCORING: Final = {
    "/score": _AZURE,
    "/invocations": _MLFLOW,
    **{f"{prefix}/completions": _COMPLETION for prefix in PREFIXES},
    **{f"{prefix}/chat/completions": _CHAT for prefix in PREFIXES},
}
_SERVER_SCHEMAS: Final = ("mlflow", "openai-completions", "openai-chat", "openai-answers", *SCHEMAS)


def server_document() -> dict[str, Any]:
    """Return OpenAPI 3.1 of our own server: every path and every response."""
    return {
        "openapi": "3.1.0",
        "info": _TITLE,
        "paths": {path: {"post": _scoring(route)} for path, route in _SCORING.items()} | _asking(),
        "components": {
            "schemas": {name: _local(schema(name), name) for name in sorted(_SERVER_SCHEMAS)},
            "responses": {status: _refusal(status) for status in _REFUSALS},
            "headers": _HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"api-key": []}],
    }


def _scoring(route: _Route) -> dict[str, Any]:
    answer = {
        "description": "The answer; with `stream` its pieces, and `[DONE]` behind the last of them",
        "headers": _headers(_REQUEST_ID),
        "content": {**_json(_any(route.answers)), "text/event-stream": {"schema": _event(route.events)}},
    }
    return {
        "summary": route.summary,
        "requestBody": {"required": True, "content": _json(_any(route.bodies))},
        "responses": {"200": answer, **_refusals(*_REFUSALS)},
    }


def _event(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of one event. Before OpenAPI 3.2 the schema of a stream is read as that of its events."""
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string"}},
        "if": {"properties": {"data": {"const": "[DONE]"}}},
        "else": {
            "properties": {"data": {"contentMediaType": "application/json", "contentSchema": _any(names)}}
        },
    }


def _asking() -> dict[str, Any]:
    """Return the paths for health, models and metrics; monitoring needs no key."""

    def phase(*phases: str) -> dict[str, Any]:
        rule = {"type": "string", "enum": list(phases)}
        return _json({"type": "object", "required": ["status"], "properties": {"status": rule}})

    text = {"text/plain": {"schema": {"type": "string"}}}
    live = _probe("Is it alive?", phase("live", "dead"))
    ready = _probe("Does it take requests?", phase("loading", "ready", "upstream_away", "draining", "dead"))
    ping = _probe("Does it take requests?", text)
    number, document = _get("Its version", text), _get("This document", _json({"type": "object"}))
    models = _get("Its one model", _json(_any(("openai-answers/$defs/models",))), "503")
    model = _get("Its model", _json(_any(("openai-answers/$defs/model",))), "404", "503")
    numbers = _get("Prometheus' text format", text)
    names = ("model_name", "model_type", "model_provider_name")
    about = {
        "type": "object",
        "required": list(names),
        "properties": {key: {"type": "string"} for key in names},
    }
    info = _get("What the model is, for Azure's inference clients", _json(about), "503")
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/health": {"get": ready, "head": ready},
        "/health/live": {"get": live, "head": live},
        "/health/ready": {"get": ready, "head": ready},
        "/ping": {"get": ping, "head": ping},
        "/version": {"get": number, "head": number},
        "/metrics": {"get": numbers, "head": numbers},
        "/openapi.json": {"get": document, "head": document},
        "/v1/models": {"get": models, "head": models},
        "/models": {"get": models, "head": models},
        "/v1/models/{name}": {"parameters": [name], "get": model, "head": model},
        **{f"{prefix}/info": {"get": info, "head": info} for prefix in PREFIXES},
    }


def _probe(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    said = {"headers": _headers(_REQUEST_ID), "content": content}
    answers = {"200": {"description": "Yes", **said}, "503": {"description": "No", **said}}
    return {"summary": summary, "responses": {**answers, **_refusals("405", "500")}, "security": []}


def _get(summary: str, content: dict[str, Any], *refusals: str) -> dict[str, Any]:
    answer = {"description": "The answer", "headers": _headers(_REQUEST_ID), "content": content}
    return {"summary": summary, "responses": {"200": answer, **_refusals("401", "405", "500", *refusals)}}


_REFUSALS: Final = {
    "400": "The body is invalid: `code` says in which way, `param` and `index` where",
    "401": "The server has keys, and the request has none of them",
    "404": "No such path or model",
    "405": "The path does not accept this method",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "The body is not JSON in UTF-8",
    "429": "The server is at its limit of requests",
    "500": "Internal error",
    "503": "The engine is not available: it is loading, draining or dead",
    "504": "The deadline passed before the first token",
}
_REQUEST_ID: Final = "x-request-id"
_MORE_HEADERS: Final = {"401": "WWW-Authenticate", "405": "Allow", "429": "Retry-After", "503": "Retry-After"}
_HEADERS: Final = {
    _REQUEST_ID: {
        "description": "The request's name: the client's own where it sent a usable one",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}},
    "Allow": {"description": "The path's methods", "required": True, "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds", "required": True, "schema": {"type": "integer", "minimum": 1}},
}


def _refusal(status: str) -> dict[str, Any]:
    more = (_MORE_HEADERS[status],) if status in _MORE_HEADERS else ()
    return {
        "description": _REFUSALS[status],
        "headers": _headers(_REQUEST_ID, *more),
        "content": _json({"$ref": "#/components/schemas/error"}),
    }


def _refusals(*statuses: str) -> dict[str, Any]:
    return {status: {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _any(names: tuple[str, ...]) -> dict[str, Any]:
    rules = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return rules[0] if len(rules) == 1 else {"anyOf": rules}


def swagger() -> dict[str, Any]:
    """Return Swagger 2.0. Its schema language cannot describe the alternative bodies, so it has an example."""
    refusal = {"description": _WRONG, "schema": {"$ref": "#/definitions/ServiceError"}}
    body = {"name": "body", "in": "body", "required": True, "schema": {"$ref": "#/definitions/ServiceInput"}}
    answer = {"description": "One row a prompt", "schema": {"$ref": "#/definitions/ServiceOutput"}}
    return {
        "swagger": "2.0",
        "info": _TITLE,
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "paths": {
            "/score": {
                "post": {
                    "parameters": [body],
                    "responses": {"200": answer, **dict.fromkeys(_STATUSES, refusal)},
                }
            }
        },
        "definitions": {
            "ServiceInput": {"type": "object", "required": ["input_data"], "example": EXAMPLE},
            "ServiceOutput": {"type": "array", "items": {"type": "object"}, "example": ANSWER},
            "ServiceError": {"type": "object", "required": ["error"]},
        },
    }


_STATUSES: Final = ("400", "405", "413", "415", "429", "500", "503", "504")


def _json(rule: dict[str, Any], example: Any = None) -> dict[str, Any]:
    return {"application/json": {"schema": rule, **({} if example is None else {"example": example})}}


def _local(node: Any, name: str) -> Any:
    """Return the schema with its references pointing into the document.

    A null counts as absent, and is gone before a body is validated: an unknown field may have one.
    """
    if isinstance(node, list):
        return [_local(item, name) for item in node]
    if not isinstance(node, dict):
        return node
    here = {
        key: _pointer(value, name) if key == "$ref" else _local(value, name)
        for key, value in node.items()
        if key not in ("$id", "$schema")
    }
    if name not in _ANSWERS and here.get("additionalProperties") is False:
        here["additionalProperties"] = {"type": "null"}
    return here


def _pointer(reference: str, name: str) -> str:
    document, _, fragment = reference.partition("#")
    target = document.removeprefix("urn:llama-endpoints:") or name
    return f"#/components/schemas/{target}{fragment}"
