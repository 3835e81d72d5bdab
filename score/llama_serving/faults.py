"""Convert exceptions of libraries to `ServingError`, and log them."""

import logging

from llama_serving.errors import InternalError, ServingError, frames

_log = logging.getLogger(__name__)


def log_to_stderr() -> None:
    """Send the start line and warnings to stderr if the host has not configured logging."""
    log = logging.getLogger("llama_serving")
    log.setLevel(logging.INFO)
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler())


def as_serving_error(error: Exception) -> ServingError:
    """Return `error` as a `ServingError`. An unexpected one is logged, and its details are not shown to the client."""
    if isinstance(error, ServingError):
        return error
    _log.error("unexpected error (messages left out, they could quote a prompt)\n%s", frames(error))
    return InternalError("The server failed on this request. The log has the cause.")
