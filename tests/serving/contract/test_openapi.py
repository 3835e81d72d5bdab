"""Our own server's OpenAPI has every path, method and error that there is; whether they answer so is a contract test's."""

from typing import Any

import pytest
import schemathesis
from jsonschema import Draft202012Validator
from schemathesis.config import SchemathesisConfig
from starlette.routing import Route

from llama_serving import errors
from llama_serving.contract.openapi import openapi, swagger
from llama_serving.contract.server_openapi import QUOTA_HEADERS, server_document
from llama_serving.errors import ServingError
from llama_serving.server.accounts.accounts import HEADERS
from llama_serving.server.app import routes
from llama_serving.server.lifecycle import Lifecycle
from llama_serving.server.metrics import Metrics
from llama_serving.server.protocols import PROTOCOLS
from llama_serving.server.scoring import Options
from llama_serving.settings import Settings

METHODS = {"get", "head", "post", "delete"}


def not_loaded() -> Any:
    raise AssertionError("nothing here needs a model")


def test_it_is_openapi() -> None:
    schemathesis.openapi.from_dict(server_document(), config=SchemathesisConfig()).validate()


def test_it_has_all_routes() -> None:
    lifecycle = Lifecycle(not_loaded, lambda code: None)
    app = routes(lifecycle, Metrics(lifecycle), Settings(), Options())
    served = {
        (route.path.replace(":path", ""), method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    described = {
        (path, name) for path, item in server_document()["paths"].items() for name in METHODS & item.keys()
    }
    assert described == served


@pytest.mark.parametrize("path", PROTOCOLS)
def test_a_path_that_scores_has_all_errors(path: str) -> None:
    faults = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServingError)
    ]
    described = server_document()["paths"][path]["post"]["responses"].keys()
    assert described == {"200", *(str(fault.status) for fault in faults)}


@pytest.mark.parametrize("path", PROTOCOLS)
def test_a_path_that_scores_has_the_headers_of_quotas_and_of_later(path: str) -> None:
    """On all but what is refused before its key is known, or without a meter."""
    document = server_document()
    assert tuple(QUOTA_HEADERS) == HEADERS
    for status, answer in document["paths"][path]["post"]["responses"].items():
        named = answer.get("$ref", "").rpartition("/")[2]
        headers = (document["components"]["responses"][named] if named else answer)["headers"].keys()
        assert (set(HEADERS) <= headers) is (status not in {"401", "405"}), status
        assert ("Retry-After" in headers) is (status in {"429", "503"}), status


@pytest.mark.parametrize("document", [openapi(), swagger()])
def test_azures_description_says_when_to_come_again(document: dict[str, Any]) -> None:
    responses = document["paths"]["/score"]["post"]["responses"]
    assert {status for status, one in responses.items() if "Retry-After" in one.get("headers", {})} == {
        "429",
        "503",
    }


def with_unknown(body: Any, value: Any) -> Any:
    """The body with a field nobody knows in each of its objects."""
    if isinstance(body, list):
        return [with_unknown(item, value) for item in body]
    if not isinstance(body, dict):
        return body
    return {"": value, **{name: with_unknown(item, value) for name, item in body.items()}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"input_data": {"input_string": [{"role": "user", "content": "a"}], "parameters": {"top_p": 1}}}),
        ("/score", {"input_data": {"columns": ["input_string"], "data": [["a"]]}, "params": {"top_p": 1}}),
        ("/invocations", {"inputs": [{"prefix": "a", "suffix": "b"}], "params": {"top_p": 1}}),
        ("/invocations", {"dataframe_records": [{"input_string": "a"}], "parameters": {"top_p": 1}}),
        ("/v1/completions", {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}),
    ],
)  # fmt: skip
def test_an_unknown_field_may_be_null(path: str, body: Any) -> None:
    """As the server has it: a null counts as absent."""
    document = server_document()
    ((_, content),) = document["paths"][path]["post"]["requestBody"]["content"].items()
    described = Draft202012Validator({**content["schema"], "components": document["components"]})
    assert described.is_valid(body)
    assert described.is_valid(with_unknown(body, None))
    assert not described.is_valid({**body, "": 1})


def test_a_path_is_the_same_below_every_prefix() -> None:
    paths = server_document()["paths"]
    for first, *others in (
        [path for path in PROTOCOLS if path.endswith("/chat/completions")],
        [path for path in PROTOCOLS if path.endswith("/completions") and "chat" not in path],
    ):
        assert len(others) == 2
        for other in others:
            assert paths[other] == paths[first]
            assert PROTOCOLS[other]._parse is PROTOCOLS[first]._parse  # type: ignore[attr-defined]
