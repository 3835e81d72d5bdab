"""The description of our own server: OpenAPI 3.1 of every path and every response."""

from dataclasses import dataclass
from typing import Any, Final

from llama_serving.contract.ollama_models import UNSUPPORTED
from llama_serving.contract.openai import PREFIXES
from llama_serving.contract.openapi import SCHEMAS, TITLE, as_json, local
from llama_serving.contract.validation import schema


@dataclass(frozen=True, slots=True)
class _Route:
    """A path of our own server that generates; request, response and event schemas by name.

    Attributes:
        lines: a stream has one JSON value a line; without it, they are events.
        done: `[DONE]` follows the last event.
        errors: prefix of the names of its error responses.
    """

    summary: str
    bodies: tuple[str, ...]
    answers: tuple[str, ...]
    events: tuple[str, ...]
    lines: bool = False
    done: bool = True
    errors: str = ""


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
_GENERATE: Final = _Route(
    "Ollama's completions and single turns; `suffix` fills in",
    ("ollama/$defs/generate",),
    ("ollama-answers/$defs/generate",),
    ("ollama-answers/$defs/generate", "ollama-answers/$defs/error"),
    lines=True,
    errors="ollama-",
)
_MESSAGES: Final = _Route(
    "Ollama's dialogs",
    ("ollama/$defs/chat",),
    ("ollama-answers/$defs/chat",),
    ("ollama-answers/$defs/chat", "ollama-answers/$defs/error"),
    lines=True,
    errors="ollama-",
)
_CONTENT: Final = ("llamacpp-answers/$defs/content",)
_SCORING: Final = {
    "/score": _AZURE,
    "/invocations": _MLFLOW,
    **{f"{prefix}/completions": _COMPLETION for prefix in PREFIXES},
    **{f"{prefix}/chat/completions": _CHAT for prefix in PREFIXES},
    "/api/generate": _GENERATE,
    "/api/chat": _MESSAGES,
    "/completion": _Route(
        "llama.cpp's completions", ("llamacpp/$defs/completion",), _CONTENT, (*_CONTENT, "error"), done=False
    ),
    "/infill": _Route(
        "llama.cpp's infilling, for editors",
        ("llamacpp/$defs/infill",),
        _CONTENT,
        (*_CONTENT, "error"),
        done=False,
    ),
}
_SERVER_SCHEMAS: Final = (
    *("mlflow", "openai-completions", "openai-chat", "openai-answers"),
    *("ollama", "ollama-answers", "llamacpp", "llamacpp-answers", "vllm", "vllm-answers"),
    *SCHEMAS,
)


def server_document() -> dict[str, Any]:
    """Return OpenAPI 3.1 of our own server: every path and every response."""
    return {
        "openapi": "3.1.0",
        "info": TITLE,
        "paths": {path: {"post": _scoring(route)} for path, route in _SCORING.items()} | _asking(),
        "components": {
            "schemas": {name: local(schema(name), name) for name in sorted(_SERVER_SCHEMAS)},
            "responses": {
                f"{kind}{status}": _refusal(status, body)
                for kind, body in _ERRORS.items()
                for status in _REFUSALS
            },
            "headers": _HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"api-key": []}],
    }


def _scoring(route: _Route) -> dict[str, Any]:
    end = ", and `[DONE]` behind the last of them" if route.done and not route.lines else ""
    answer = {
        "description": f"The answer; with `stream` its pieces{end}",
        "headers": _headers(_REQUEST_ID, *QUOTA_HEADERS),
        "content": {**as_json(_any(route.answers)), **_streamed(route)},
    }
    return {
        "summary": route.summary,
        "requestBody": {"required": True, "content": as_json(_any(route.bodies))},
        "responses": {"200": answer, **_refusals(*_REFUSALS, kind=route.errors)},
    }


def _streamed(route: _Route) -> dict[str, Any]:
    """Return the schema of one piece. Before OpenAPI 3.2 the schema of a stream is read as that of its pieces."""
    if route.lines:
        return {"application/x-ndjson": {"schema": _any(route.events)}}
    data = {"data": {"contentMediaType": "application/json", "contentSchema": _any(route.events)}}
    event: dict[str, Any] = {
        "type": "object", "required": ["data"], "properties": {"data": {"type": "string"}},
    }  # fmt: skip
    if route.done:
        event |= {"if": {"properties": {"data": {"const": "[DONE]"}}}, "else": {"properties": data}}
    else:
        event["allOf"] = [{"properties": data}]
    return {"text/event-stream": {"schema": event}}


def _asking() -> dict[str, Any]:
    """Return the paths for health, models and metrics; monitoring needs no key."""

    def phase(*phases: str) -> dict[str, Any]:
        rule = {"type": "string", "enum": list(phases)}
        return as_json({"type": "object", "required": ["status"], "properties": {"status": rule}})

    text = {"text/plain": {"schema": {"type": "string"}}}
    live = _probe("Is it alive?", phase("live", "dead"))
    ready = _probe("Does it take requests?", phase("loading", "ready", "upstream_away", "draining", "dead"))
    ping = _probe("Does it take requests?", text)
    version = {"type": "object", "required": ["version"], "properties": {"version": {"type": "string"}}}
    number, document = _get("Its version", as_json(version)), _get("This document", as_json({"type": "object"}))
    models = _get("Its one model", as_json(_any(("openai-answers/$defs/models",))), "503")
    model = _get("Its model", as_json(_any(("openai-answers/$defs/model",))), "404", "503")
    numbers = _get("Prometheus' text format", text)
    names = ("model_name", "model_type", "model_provider_name")
    about = {
        "type": "object",
        "required": list(names),
        "properties": {key: {"type": "string"} for key in names},
    }
    info = _get("What the model is, for Azure's inference clients", as_json(about), "503")
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        **_about_ollama(),
        **_about_llamacpp(),
        **_about_tokens(),
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


def _about_ollama() -> dict[str, Any]:
    """Return Ollama's paths that describe the model, and those that are always refused."""

    def told(kind: str) -> dict[str, Any]:
        return as_json(_any((f"ollama-answers/$defs/{kind}",)))

    tags = _get("The model, as Ollama lists it", told("tags"), "503", kind="ollama-")
    running = _get("The model, which is loaded", told("tags"), "503", kind="ollama-")
    number = _get("The version of Ollama's API", told("version"), kind="ollama-")
    show = _ask(
        "The model's facts, as Ollama has them", ("ollama/$defs/show",), told("show"), "404", kind="ollama-"
    )
    refused = {
        "summary": "Refused: this server stores no models and embeds nothing",
        "responses": _refusals("400", "401", "405", "500", kind="ollama-"),
    }
    here = {
        "200": {"description": "There is a server", "headers": _headers(_REQUEST_ID)},
        **_refusals("404", "500"),
    }
    return {
        "/": {"head": {"summary": "Is there a server?", "responses": here, "security": []}},
        "/api/tags": {"get": tags, "head": tags},
        "/api/ps": {"get": running, "head": running},
        "/api/version": {"get": number, "head": number},
        "/api/show": {"post": show},
        **{path: {"delete" if path == "/api/delete" else "post": refused} for path in UNSUPPORTED},
    }


def _about_llamacpp() -> dict[str, Any]:
    """Return llama.cpp's paths that generate nothing."""

    def told(kind: str) -> dict[str, Any]:
        return as_json(_any((f"llamacpp-answers/$defs/{kind}",)))

    props = _get("The server's properties, as llama.cpp has them", told("props"), "503")
    slots = _get("Its slots", told("slots"), "503")
    return {
        "/props": {"get": props, "head": props},
        "/slots": {"get": slots, "head": slots},
    }


def _about_tokens() -> dict[str, Any]:
    """Return the paths of tokens, which vLLM and llama.cpp share."""
    kinds = ("vllm/$defs/tokenize", "vllm/$defs/tokenize_dialog", "llamacpp/$defs/tokenize")
    ids = as_json(_any(("vllm-answers/$defs/tokens", "llamacpp-answers/$defs/tokens")))
    text = as_json(_any(("vllm-answers/$defs/text",)))
    return {
        "/tokenize": {"post": _ask("The token ids of a text or dialog", kinds, ids, "404")},
        "/detokenize": {"post": _ask("The text of token ids", ("vllm/$defs/detokenize",), text, "404")},
    }


def _probe(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    said = {"headers": _headers(_REQUEST_ID), "content": content}
    answers = {"200": {"description": "Yes", **said}, "503": {"description": "No", **said}}
    return {"summary": summary, "responses": {**answers, **_refusals("405", "500")}, "security": []}


def _get(summary: str, content: dict[str, Any], *refusals: str, kind: str = "") -> dict[str, Any]:
    answer = {"description": "The answer", "headers": _headers(_REQUEST_ID), "content": content}
    refused = _refusals("401", "405", "500", *refusals, kind=kind)
    return {"summary": summary, "responses": {"200": answer, **refused}}


def _ask(
    summary: str, bodies: tuple[str, ...], content: dict[str, Any], *refusals: str, kind: str = ""
) -> dict[str, Any]:
    """Return an operation with a body that generates nothing."""
    statuses = ("400", "408", "413", "415", "429", "503", *refusals)
    asked = {"required": True, "content": as_json(_any(bodies))}
    return {**_get(summary, content, *statuses, kind=kind), "requestBody": asked}


_ERRORS: Final = {"": "error", "ollama-": "ollama-answers/$defs/error"}
"""Prefixes of the names of error responses, and the schemas of their bodies."""
_REFUSALS: Final = {
    "400": "The body is invalid: `code` says in which way, `param` and `index` where",
    "401": "The server has keys, and the request has none of them",
    "404": "No such path or model",
    "405": "The path does not accept this method",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "The body is not JSON in UTF-8",
    "429": "The server is at its limit of requests, or the request's key at its own",
    "500": "Internal error",
    "503": "The engine is not available: it is loading, draining or dead. Or a guard could not check the request",
    "504": "The deadline passed before the first token",
}
_REQUEST_ID: Final = "x-request-id"
_MORE_HEADERS: Final = {"401": "WWW-Authenticate", "405": "Allow", "429": "Retry-After", "503": "Retry-After"}
_NEVER_METERED: Final = frozenset(("401", "405"))
"""What is refused before the request's key is known, or is no POST."""
_COUNT: Final = {"type": "integer", "minimum": 0}
_DURATION: Final = {"type": "string", "pattern": r"^([0-9]+ms|([0-9]+h)?([0-9]+m)?[0-9.]+s)$"}
_OF_QUOTAS: Final = {
    "limit": ("The key's limit of {}", _COUNT),
    "remaining": ("What is left of it", _COUNT),
    "reset": ("Until it is full again, such as 6m0s", _DURATION),
}
QUOTA_HEADERS: Final[dict[str, dict[str, Any]]] = {
    f"x-ratelimit-{what}-{unit}": {
        "description": f"{text.format(unit)}; only for a key that has one, on paths that generate",
        "schema": rule,
    }
    for unit in ("requests", "tokens")
    for what, (text, rule) in _OF_QUOTAS.items()
}
"""Headers that say what is left of a key's limits."""
_HEADERS: Final = {
    **QUOTA_HEADERS,
    _REQUEST_ID: {
        "description": "The request's name: the client's own where it sent a usable one",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}},
    "Allow": {"description": "The path's methods", "required": True, "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds", "required": True, "schema": {"type": "integer", "minimum": 1}},
}


def _refusal(status: str, body: str) -> dict[str, Any]:
    more = (_MORE_HEADERS[status],) if status in _MORE_HEADERS else ()
    quotas = () if status in _NEVER_METERED else tuple(QUOTA_HEADERS)
    return {
        "description": _REFUSALS[status],
        "headers": _headers(_REQUEST_ID, *more, *quotas),
        "content": as_json(_any((body,))),
    }


def _refusals(*statuses: str, kind: str = "") -> dict[str, Any]:
    return {status: {"$ref": f"#/components/responses/{kind}{status}"} for status in statuses}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _any(names: tuple[str, ...]) -> dict[str, Any]:
    rules = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return rules[0] if len(rules) == 1 else {"anyOf": rules}
