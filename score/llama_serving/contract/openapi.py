"""`/score` described for clients: OpenAPI 3.1 with the published schemas, and Swagger 2.0 with an example.

azmlinfsrv serves the files that lie beside the scoring script; `python -m deployment.swagger` writes them.
"""

from typing import Any, Final

from llama_serving.contract.validation import schema

SCHEMAS: Final = ("azure", "prompts", "parameters", "error")
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
_REFUSAL: Final = "What was wrong, what is allowed, what to do"


def openapi() -> dict[str, Any]:
    """OpenAPI 3.1, which shares its schema language with the files under `schema/`."""
    error = {"description": _REFUSAL, "content": _json({"$ref": "#/components/schemas/error"})}
    answer = {"content": _json({}, ANSWER), "description": "One row a prompt, or the dialog's answer"}
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


SERVER: Final = {
    "/score": ("azure", "Azure's body: complete, chat or fill in"),
    "/invocations": ("mlflow", "MLflow's body"),
    "/v1/completions": ("openai-completions", "OpenAI's completions; `suffix` fills in"),
    "/v1/chat/completions": ("openai-chat", "OpenAI's chat completions"),
}
"""Paths of our own server that score: schema and summary."""
PROBES: Final = ("/health/live", "/health/ready", "/ping", "/version", "/metrics", "/v1/models")


def server_document() -> dict[str, Any]:
    """OpenAPI 3.1 of our own server."""
    error = {"description": _REFUSAL, "content": _json({"$ref": "#/components/schemas/error"})}
    refusals = dict.fromkeys((*_STATUSES, "401", "404", "408"), error)
    done = {
        "description": "The answer; with `stream` as server-sent events",
        "content": {**_json({}), "text/event-stream": {"schema": {"type": "string"}}},
    }
    names = {name for name, _ in SERVER.values()} | set(SCHEMAS)
    scoring = {
        path: {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": _json({"$ref": f"#/components/schemas/{name}"})},
                "responses": {"200": done, **refusals},
            }
        }
        for path, (name, summary) in SERVER.items()
    }
    probe = {"get": {"responses": {"200": {"description": "Yes"}, "401": error, "503": error}}}
    return {
        "openapi": "3.1.0",
        "info": _TITLE,
        "paths": scoring | dict.fromkeys(PROBES, probe),
        "components": {
            "schemas": {name: _local(schema(name), name) for name in sorted(names)},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def swagger() -> dict[str, Any]:
    """Swagger 2.0: its schema language can't say what the body may be, so it shows an example."""
    refusal = {"description": _REFUSAL, "schema": {"$ref": "#/definitions/ServiceError"}}
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
    """The schema with its references pointing into the document."""
    if isinstance(node, list):
        return [_local(item, name) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _pointer(value, name) if key == "$ref" else _local(value, name)
        for key, value in node.items()
        if key not in ("$id", "$schema")
    }


def _pointer(reference: str, name: str) -> str:
    document, _, fragment = reference.partition("#")
    target = document.removeprefix("urn:llama-endpoints:") or name
    return f"#/components/schemas/{target}{fragment}"
