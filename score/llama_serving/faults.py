"""Exceptions of libraries as errors of ours, and the log."""

import logging

from llama_serving.errors import (
    InternalError,
    ServingError,
    frames,
)

_log = logging.getLogger(__name__)


def log_to_stderr() -> None:
    """Makes the start line and the warnings visible in servers that have set up no logging."""
    log = logging.getLogger("llama_serving")
    log.setLevel(logging.INFO)
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler())


def as_serving_error(error: Exception) -> ServingError:
    """Any fault as one that may be shown; what nobody foresaw goes to the log, not to the client."""
    if isinstance(error, ServingError):
        return error
    _log.error("unforeseen fault (messages left out, they could quote a prompt)\n%s", frames(error))
    return InternalError("The server failed on this request. The log has the cause.")
