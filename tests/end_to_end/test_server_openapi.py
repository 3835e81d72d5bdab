"""Our own server's OpenAPI: schemathesis makes requests from it, good and bad, and holds every answer against it.

Paths that are the same functions below another prefix are left out; `test_openapi.py` has them.

A body that the schemas take may still be refused, for what JSON Schema can't say; then the error's code says it.
"""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
import schemathesis
from hypothesis.strategies import nothing
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.errors import InvalidSchema
from schemathesis.generation.jsonschema import strategy
from schemathesis.specs.openapi import checks

from llama_serving.contract.ollama_models import UNSUPPORTED
from llama_serving.contract.parameters import ALIASES
from llama_serving.contract.server_openapi import server_document
from llama_serving.contract.validation import schema
from llama_serving.server.protocols import PROTOCOLS
from tests.conftest import post
from tests.support.in_process import LocalServer, logged, serving

KEY: Final = {"Authorization": "Bearer the-key"}
SMALL: Final = {
    "LLAMA_API_KEYS": "the-key",
    "LLAMA_CONTEXT": "32",
    "LLAMA_MAX_PROMPTS": "4",
    "LLAMA_THREADS": "1",  # a second one would only wait, the longer the busier the machine is
}
TWINS: Final = frozenset(
    path for path in PROTOCOLS if path.removeprefix("/models") in ("/completions", "/chat/completions")
)
"""The same functions as below /v1."""
CONFIG: Final = {
    "max-stream-events": 1000,
    "request-timeout": 60,
    "generation": {
        "max-examples": 14,
        "deterministic": True,  # the same requests in every run
        "database": "none",
        "no-shrink": True,
        "with-security-parameters": False,  # all have the key, but for those that `ignored_auth` sends
    },
    "checks": {
        # (Of the documented ones, 503 and 504 too are a fault here: one client at a time gives no cause for them.)
        "not_a_server_error": {"expected-statuses": ["2xx", "4xx"]},
        "negative_data_rejection": {"expected-statuses": ["400", "404", "405", "413", "415"]},
        "positive_data_acceptance": {"expected-statuses": ["200", "404"]},
    },
    "operations": [
        # Its bodies are those of all others: to cover each of their fields again would take a minute.
        {
            "include-path": "/invocations",
            "generation": {"max-examples": 70},
            "phases": {"coverage": {"enabled": False}},
        },
        # Nearly all of its fields are those of the chats.
        {
            "include-path": "/v1/completions",
            "generation": {"max-examples": 60},
            "phases": {"coverage": {"enabled": False}},
        },
        # Their fields have a table of their own (test_contract_ollama.py, test_contract_llamacpp.py).
        *(
            {"include-path": path, "phases": {"coverage": {"enabled": False}}}
            for path in ("/api/generate", "/api/chat", "/completion", "/infill", *UNSUPPORTED)
        ),
    ],
}


def api() -> Any:
    """The document as it is where the operator has set keys; without them they are optional."""
    document = server_document()
    document["security"] = [rule for rule in document["security"] if rule]
    document["paths"] = {path: item for path, item in document["paths"].items() if path not in TWINS}
    return schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_dict(CONFIG))


API: Final = api()


@pytest.fixture(scope="module")
def log() -> Iterator[list[logging.LogRecord]]:
    """What the server logged."""
    with logged() as records:
        yield records


@pytest.fixture(scope="module")
def small(log: list[logging.LogRecord]) -> Iterator[LocalServer]:
    """Whatever it is asked takes a moment."""
    with serving(SMALL) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def drawable() -> Iterator[None]:
    """An array that needs an element which nothing meets is no case. Schemathesis takes most of them for that, and fails at others."""
    repeated = strategy._repeated

    def drawn(*given: Any, **named: Any) -> Any:
        try:
            return repeated(*given, **named)
        except InvalidSchema:
            return nothing()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategy, "_repeated", drawn)
        yield


# --- what is checked ---------------------------------------------------------------------------------

ERROR: Final = Draft202012Validator(schema("error"))
OLLAMAS: Final = Draft202012Validator(schema("ollama-answers")["$defs"]["error"])
BEYOND_JSON_SCHEMA: Final = {
    "competing_fields": "",
    "context_exceeded": "",
    "context_length_exceeded": "",
    "invalid_dialog": "",
    "streaming_unsupported": "",
    "too_many_prompts": "",
    "empty_prompt": "neither a prefix nor a suffix",
    "invalid_json": "An integer has |Send a JSON schema",
    "unsupported_constraint": "",
    "invalid_value": "outside the vocabulary|beside `rep|can't be met|can't be the same|beside it|goes with one|entries for|<FILL_ME>",
    "unsupported_field": "can't be combined",
}
"""Codes of errors in bodies that the schemas take; and what the message has, where a code has other meanings too."""


def refuses_in_our_words(ctx: Any, response: Any, case: Any) -> None:
    """Every refusal is our object and names the request; the paths are there."""
    del ctx
    (request_id,) = response.headers["x-request-id"]
    if response.status_code < 400 or response.request.method == "HEAD":
        return
    said = response.json()
    assert (response.status_code == 400 or case.path not in UNSUPPORTED) or response.status_code in (401, 405)
    if case.path.startswith("/api/"):
        OLLAMAS.validate(said)
        assert said["request_id"] == request_id
        return
    ERROR.validate(said)
    assert said["error"]["request_id"] == request_id
    if case.path != "/invocations":  # whose refusals are in the words of the body's protocol
        assert ("type" in said["error"]) == case.path.startswith(
            (
                "/v1/",
                "/models",
                "/completion",
                "/chat/",
                "/info",
                "/infill",
                "/props",
                "/slots",
                "/tokenize",
                "/detokenize",
            )
        )
    assert response.status_code != 404 or case.path in ("/v1/models/{name}", "/")


def ends_its_streams(ctx: Any, response: Any, case: Any) -> None:
    """All of them to the end: nothing goes wrong in the middle."""
    del ctx
    if response.headers["content-type"][0].startswith("text/event-stream"):
        done = response.content.endswith(b"\n\ndata: [DONE]\n\n")
        assert done == (case.path not in ("/completion", "/infill"))
        assert (
            done or json.loads(response.content.rstrip().rpartition(b"\n")[2].removeprefix(b"data: "))["stop"]
        )
    elif response.headers["content-type"][0] == "application/x-ndjson":
        assert json.loads(response.content.rstrip().rpartition(b"\n")[2])["done"]


def takes_good_bodies(ctx: Any, response: Any, case: Any) -> None:
    """`positive_data_acceptance`, but for what the schemas can't say."""
    if response.status_code == 400 and case.meta.generation.mode.is_positive:
        if case.path in UNSUPPORTED:
            return
        told = response.json()
        error = told["error"]
        code, message = (told["code"], error) if isinstance(error, str) else (error["code"], error["message"])
        says = BEYOND_JSON_SCHEMA.get(code)
        if says is not None and re.search(says, message):
            return
    checks.positive_data_acceptance(ctx, response, case)


def other_methods(ctx: Any, response: Any, case: Any) -> None:
    """`unsupported_method`, but for `/`, which is a path for those alone who HEAD it."""
    if case.path != "/":
        checks.unsupported_method(ctx, response, case)


TRIED: Final[set[str]] = set()


def wants_the_key(ctx: Any, response: Any, case: Any) -> None:
    """`ignored_auth`, which asks again without a key and with wrong ones: for one good request of each operation."""
    if response.status_code == 200 and case.operation.label not in TRIED:
        TRIED.add(case.operation.label)
        checks.ignored_auth(ctx, response, case)


CHECKS: Final = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    takes_good_bodies,
    other_methods,
    checks.allow_header_conformance,
    wants_the_key,
    refuses_in_our_words,
    ends_its_streams,
]
"""All that schemathesis has but these: `missing_required_header` (none is required but the key's), `use_after_free`,
`ensure_resource_availability` and `object_level_authorization` (nothing is created or deleted), and
`max_response_time` (it would depend on the machine)."""


# --- what is asked -----------------------------------------------------------------------------------

LENGTHS: Final = {
    "min_new_tokens",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
    "num_predict",
    "max_gen_len",
    "min_tokens",
}


HELD: Final = ("tools", "response_format", "structured_outputs")
"""What holds a text: one of them, and it has an end."""


def mended(node: Any) -> Any:
    """A good body without the faults that JSON Schema can't see: most have one, and would never get to the model."""
    if isinstance(node, list):
        return in_turn([mended(item) for item in node])
    if not isinstance(node, dict):
        return node
    body = {name: mended(value) for name, value in node.items()}
    add_what_is_missing(body)
    in_one_place(body)
    for parameters in (
        body.get("parameters"),
        body.get("params"),
        body if {"prompt", "messages"} & body.keys() else None,
    ):
        if isinstance(parameters, dict) and not LENGTHS & parameters.keys():
            parameters["max_new_tokens"] = 2
    return body


def mended_elsewhere(path: str, body: Any) -> Any:
    """The same for a body of Ollama's or llama.cpp's."""
    if path.startswith("/api/"):
        given = {
            name: value for name, value in body.items() if name not in ("suffix", "system", "top_logprobs")
        }
        options = {
            **(given.get("options") or {}),
            "num_predict": 2,
            "repeat_last_n": -1,
            "penalize_newline": True,
        }
        if isinstance(given.get("messages"), list):
            turns = [{"content": "a", **turn} for turn in given["messages"] if isinstance(turn, dict)]
            given["messages"] = in_turn([{**turn, "content": turn["content"] or "a"} for turn in turns])
        return {**given, "options": options}
    given = {name: value for name, value in body.items() if name not in ("max_tokens", "editor_stops")}
    if path == "/completion":
        given["prompt"] = "a"
    return {**given, "n_predict": 2, "repeat_last_n": -1, "penalize_nl": True}


def add_what_is_missing(body: dict[str, Any]) -> None:
    """What one field needs of another."""
    if body.get("prefix") == body.get("suffix") == "":
        body["prefix"] = "a"
    if "prompt" in body and body.get("suffix") is not None:
        body["prompt"] = "a"
    if body.get("stream_options") is not None:
        body["stream"] = True
        body["stream_options"] |= {"include_usage": True}
    if body.get("top_logprobs") is not None:
        body["logprobs"] = True
    if body.get("tools"):
        body |= {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}
    elif body.get("tool_choice") not in (None, "none"):
        body["tool_choice"] = "auto"
    if body.get("response_format"):
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": {"type": "boolean"}}}
    if any(body.get(name) for name in HELD):
        for name in ("ignore_eos", *[name for name in HELD if body.get(name)][1:]):
            body.pop(name, None)


def in_turn(items: list[Any]) -> list[Any]:
    """A dialog as it has to be; other lists as they are."""
    if not all(isinstance(item, dict) and "role" in item for item in items):
        return items
    calling = ("tool_calls", "tool_call_id")
    turns = [
        {
            **{name: value for name, value in turn.items() if name not in calling},
            "content": turn.get("content") or "a",
        }
        for turn in items[: (len(items) - 1) // 2 * 2 + 1]
    ]
    return [{**turn, "role": ("user", "assistant")[number % 2]} for number, turn in enumerate(turns)]


def in_one_place(body: dict[str, Any]) -> None:
    """Of the parameters that stand in several places, those with the most names are kept; and one name of each."""
    for alias, name in ALIASES.items():
        if body.get(name) is not None:
            body.pop(alias, None)
    nodes = (body, *(value for value in body.values() if isinstance(value, dict)))
    places = [(node, name) for node in nodes for name in ("parameters", "params") if node.get(name) is not None]
    for node, name in sorted(places, key=lambda place: len(place[0][place[1]]))[:-1]:
        del node[name]


@pytest.fixture(scope="module")
def asked() -> set[str]:
    """Good requests that were made: mended, many are the same."""
    return set()


@API.parametrize()
def test_every_answer_is_as_described(case: Any, small: LocalServer, asked: set[str]) -> None:
    if case.meta.generation.mode.is_positive:
        elsewhere = case.path in ("/api/generate", "/api/chat", "/completion", "/infill")
        case.body = mended_elsewhere(case.path, case.body) if elsewhere else mended(case.body)
        request = f"{case.operation.label} {case.path_parameters} {case.body}"
        if request in asked:
            return
        asked.add(request)
    # A connection for each: on one that is kept, schemathesis would ask again after a reset, and not say so.
    case.call_and_validate(small.url, headers=KEY, checks=CHECKS)


def test_good_bodies_got_to_the_model(asked: set[str]) -> None:
    assert asked
    assert {f"POST {path}" for path in PROTOCOLS if path not in TWINS} <= TRIED


def test_the_server_is_well_afterwards(small: LocalServer, log: list[logging.LogRecord]) -> None:
    answer = post(f"{small.url}/v1/completions", {"prompt": "def f(x):", "max_tokens": 2}, **KEY)
    assert (answer.status, answer.json["usage"]["completion_tokens"]) == (200, 2)
    assert log
    assert not [record for record in log if record.levelno >= logging.ERROR or record.exc_info]
