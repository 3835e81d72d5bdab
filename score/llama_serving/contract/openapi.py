"""The description of `/score`: OpenAPI 3.1 with the published schemas, and Swagger 2.0 with an example.

azmlinfsrv serves the files beside the scoring script; `python -m llama_endpoints.devtools.reference` writes them.
"""

from typing import Any, Final

from llama_serving.contract.validation import schema

SCHEMAS: Final = ("azure", "prompts", "parameters", "error", "answers", "receipt")
_ANSWERS: Final = (
    *("error", "answers", "openai-answers", "ollama-answers", "llamacpp-answers", "vllm-answers"),
    "receipt",
)
EXAMPLE: Final = {
    "input_data": {
        "input_string": ["Develop a Python function to sort a list of integers in ascending order"],
        "parameters": {"return_full_text": False, "do_sample": True},
    }
}
ANSWER: Final = [{"0": "text"}]
TITLE: Final = {
    "title": "llama-endpoints",
    "version": "1",
    "description": "Code Llama and Llama-2 completions",
}
_WRONG: Final = "What was wrong, what is allowed, what to do"


def openapi() -> dict[str, Any]:
    """Return OpenAPI 3.1, which has the schema language of the files under `schema/`."""
    error = {"description": _WRONG, "content": as_json({"$ref": "#/components/schemas/error"})}
    rule = {"$ref": "#/components/schemas/answers/$defs/azure"}
    answer = {"content": as_json(rule, ANSWER), "description": "One row a prompt, or the dialog's answer"}
    operation = {
        "summary": "Complete, chat or fill in",
        "requestBody": {"required": True, "content": as_json({"$ref": "#/components/schemas/azure"}, EXAMPLE)},
        "responses": {
            "200": answer,
            **{status: {**error, **_headers(status, {"schema": _SECONDS})} for status in _STATUSES},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": TITLE,
        "paths": {"/score": {"post": operation}},
        "components": {"schemas": {name: local(schema(name), name) for name in SCHEMAS}},
    }


def swagger() -> dict[str, Any]:
    """Return Swagger 2.0. Its schema language cannot describe the alternative bodies, so it has an example."""
    refusal = {"description": _WRONG, "schema": {"$ref": "#/definitions/ServiceError"}}
    body = {"name": "body", "in": "body", "required": True, "schema": {"$ref": "#/definitions/ServiceInput"}}
    answer = {"description": "One row a prompt", "schema": {"$ref": "#/definitions/ServiceOutput"}}
    return {
        "swagger": "2.0",
        "info": TITLE,
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "paths": {
            "/score": {
                "post": {
                    "parameters": [body],
                    "responses": {
                        "200": answer,
                        **{status: {**refusal, **_headers(status, _SECONDS)} for status in _STATUSES},
                    },
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
_LATER: Final = frozenset(("429", "503"))
"""Statuses after which trying again makes sense."""
_SECONDS: Final = {"type": "integer", "minimum": 1}


def _headers(status: str, rule: dict[str, Any]) -> dict[str, Any]:
    """Return the headers of a refusal; `rule` describes one in the document's own way."""
    described = {"Retry-After": {"description": "Seconds", **rule}}
    return {"headers": described} if status in _LATER else {}


def as_json(rule: dict[str, Any], example: Any = None) -> dict[str, Any]:
    """Return the content of a body of JSON."""
    return {"application/json": {"schema": rule, **({} if example is None else {"example": example})}}


def local(node: Any, name: str) -> Any:
    """Return the schema with its references pointing into the document.

    A null counts as absent, and is gone before a body is validated: an unknown field may have one.
    """
    if isinstance(node, list):
        return [local(item, name) for item in node]
    if not isinstance(node, dict):
        return node
    here = {
        key: _pointer(value, name) if key == "$ref" else local(value, name)
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
