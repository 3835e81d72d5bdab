"""Azure ML's online endpoint: init() and run() of `score.py`, under azmlinfsrv.

azmlinfsrv turns an exception in run() into an opaque 500, so every error is returned as a response.
"""

import logging
import os
import threading
import time
import uuid
from typing import Any, Final

import flask
from azureml_inference_server_http.api.aml_request import rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse

from llama_serving.contract import azure, http, strict_json
from llama_serving.errors import InternalError, ServingError, SetupError, Unavailable
from llama_serving.faults import as_serving_error, log_to_stderr
from llama_serving.model_files import ModelFiles
from llama_serving.service.collection import configuration as collection
from llama_serving.service.collection.caller import Caller
from llama_serving.service.service import Service
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

DEFAULT_DEADLINE_S: Final = 178.0
"""Seconds; managed endpoints end a request after 180, less two for the response."""

CHUNK: Final = 1 << 20
MOST_DISCARDED: Final = 64 * CHUNK
"""Bytes beyond the limit that are still read, so that most clients with too large a body get the error."""


class _Process:
    """The service of this process. A forked worker has no engine thread, so it loads its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._service: Service | None = None

    def start(self) -> Service:
        """Return the service, which is loaded by the first call in each process."""
        with self._lock:
            if self._service is None or self._pid != os.getpid():
                self._service, self._pid = _load(), os.getpid()
            return self._service


_process = _Process()


def init() -> None:
    """Load the model below `AZUREML_MODEL_DIR`.

    Raises:
        SetupError: the model or a setting cannot be used; the server stops.
    """
    log_to_stderr()
    if os.environ.get("WORKER_PRELOAD", "").lower() == "true":
        raise SetupError(
            "WORKER_PRELOAD=true loads the model in a process that then forks, and torch does not survive a "
            "fork. Set WORKER_PRELOAD=false."
        )
    _process.start()


@rawhttp  # type: ignore[untyped-decorator]
def run(request: flask.Request) -> AMLResponse:
    """Respond to one HTTP request; never raises."""
    if request.method == "OPTIONS":  # a browser's preflight; azmlinfsrv adds AML_CORS_ORIGINS to the response
        return AMLResponse("", 200)
    request_id = str(getattr(flask.g, "request_id", "")) or None
    try:
        return AMLResponse(_answer(request, request_id), 200, json_str=True)
    except ServingError as error:
        return _refusal(error, request_id)
    except Exception as error:  # azmlinfsrv would answer an opaque 500
        return _refusal(as_serving_error(error), request_id)


def _answer(request: flask.Request, request_id: str | None) -> Any:
    service = _process.start()
    raw = _read(request, service.settings.max_body)
    http.check_method(request.method)
    http.check_media_type(request.headers.get("Content-Type"), request.headers.get("Content-Encoding"))
    http.check_size(len(raw), service.settings.max_body)
    with service.admitted():
        parsed = azure.parse(strict_json.decode(raw))
        deadline = time.monotonic() + (service.settings.deadline_s or DEFAULT_DEADLINE_S)
        caller = Caller(request_id or uuid.uuid4().hex, _keys(request))
        return azure.answer(parsed, service.generate(parsed, deadline=deadline, caller=caller))


def _keys(request: flask.Request) -> tuple[str, ...]:
    """Return the key that Azure's front checked, where it passes it on: it is never collected."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return (token.strip(),) if scheme.lower() == "bearer" and token.strip() else ()


def _read(request: flask.Request, limit: int) -> bytes:
    """Return the body, or one byte more than is allowed.

    The rest of a larger body is read too: closing a socket with unread bytes resets it, and a client that reads only after
    sending would never see the response.
    """
    raw: bytes = request.stream.read(limit + 1)
    left = MOST_DISCARDED if len(raw) > limit else 0
    while left > 0 and (chunk := request.stream.read(min(left, CHUNK))):
        left -= len(chunk)
    return raw


def _refusal(error: ServingError, request_id: str | None) -> AMLResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if isinstance(error, (InternalError, Unavailable)):
        _log.error("%s: %s", request_id, error.message)
    body_ = error.body(request_id)
    response = AMLResponse(body_, error.status, headers, json_str=True)
    if error.status == 405:
        response.headers["Allow"] = "POST"
    return response


def _load() -> Service:
    settings = Settings.from_environment()
    if settings.api_keys:
        _log.warning("LLAMA_API_KEYS has no effect here: on Azure ML the endpoint checks keys")
    if settings.traces != "off":
        _log.warning("LLAMA_TRACES has no effect here: only our own server writes traces")
    if settings.named_keys is not None or settings.audit is not None:
        _log.warning("LLAMA_NAMED_KEYS and LLAMA_AUDIT have no effect here: only our own server has them")
    return collection.started(settings, lambda: Service.start(ModelFiles.deployed(), settings))
