"""What clients are shown of `/score` is what validates their bodies."""

import json
import urllib.request
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llama_endpoints.devtools.reference import DESCRIPTIONS
from llama_endpoints.devtools.servers import RunningServer
from llama_serving.contract.openapi import EXAMPLE


@pytest.mark.parametrize(
    ("body", "valid"),
    [(EXAMPLE, True), ({"input_data": {"input_string": [1]}}, False), ({"input_data": ["p"], "x": 1}, False)],
)
def test_the_document_stands_alone(body: object, valid: bool) -> None:
    document = DESCRIPTIONS["swagger3.1.json"]()
    rule = {"$ref": "#/components/schemas/azure", "components": document["components"]}
    assert Draft202012Validator(rule).is_valid(body) is valid


@pytest.mark.parametrize(("version", "name"), [("2", "swagger.json"), ("3.1", "swagger3.1.json")])
def test_the_server_serves_it(azure_server: RunningServer, version: str, name: str) -> None:
    with urllib.request.urlopen(f"{azure_server.url}/swagger.json?version={version}", timeout=30) as response:
        served: Any = json.loads(response.read())
    assert served == DESCRIPTIONS[name]()
