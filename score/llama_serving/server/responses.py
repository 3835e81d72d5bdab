"""Responses of all routes: JSON, and errors in the words of a path's protocol."""

import json
from typing import Any

from starlette.responses import JSONResponse, Response

from llama_serving.contract.adapter import ProtocolAdapter
from llama_serving.errors import ServingError


def refusal(error: ServingError, request_id: str, adapter: ProtocolAdapter | None = None) -> Response:
    """Return an error response."""
    content = adapter.error(error, request_id) if adapter else error.body(request_id)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return as_json(content, error.status, headers)


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response of JSON."""
    return _Json(content, status, headers)


class _Json(JSONResponse):
    """JSON with non-ASCII text unescaped."""

    def render(self, content: Any) -> bytes:
        """Return the content as UTF-8."""
        return json.dumps(content, ensure_ascii=False).encode()
