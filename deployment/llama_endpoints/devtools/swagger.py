"""Write the descriptions of `/score` that azmlinfsrv serves: `python -m llama_endpoints.devtools.swagger`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_serving.contract.json_lines import json_document
from llama_serving.contract.openapi import openapi, swagger

SCORE = Path(__file__).parents[3] / "score"


def documents() -> Mapping[str, dict[str, Any]]:
    """Return the documents by file name; azmlinfsrv looks for these names."""
    return {"swagger.json": swagger(), "swagger3.1.json": openapi()}


def dumps(document: Mapping[str, Any]) -> str:
    """Serialize a document as it is committed."""
    return json_document(document, indent=1)


def main() -> None:
    """Write the files."""
    for name, document in documents().items():
        (SCORE / name).write_text(dumps(document), encoding="utf-8")


if __name__ == "__main__":
    main()
