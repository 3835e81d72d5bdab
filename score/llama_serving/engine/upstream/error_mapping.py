"""Maps errors of the upstream server to our own. Of its text only names are quoted, since its messages may hold a
prompt."""

import re
from collections.abc import Mapping
from typing import Any, Final

from llama_serving.errors import (
    BadRequest,
    DeadlineExceeded,
    InternalError,
    QueueFull,
    ServingError,
    Unavailable,
)

RETRY_AFTER_S: Final = 5
_MOST_RETRY_AFTER_S: Final = 3600
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")
_CODE: Final = "upstream_error"


def away(why: str) -> Unavailable:
    """Return the error of a server that is not reachable."""
    return Unavailable(
        f"The model's server can't be reached: {why}. Try again in {RETRY_AFTER_S} s.",
        retry_after=RETRY_AFTER_S,
    )


def broken(why: str) -> Unavailable:
    """Return the error of a server that failed in the middle of a response, which must not be requested again."""
    return Unavailable(
        f"The model's server broke off before the text was complete: {why}. Try again in {RETRY_AFTER_S} s.",
        retry_after=RETRY_AFTER_S,
    )


def malformed(what: str) -> InternalError:
    """Return the error of an invalid response."""
    return InternalError(
        f"The model's server sent {what}. Try again; if it goes on, its version is not one that this server can use.",
        code=_CODE,
    )


def refused(status: int, retry_after: str | None, said: Any, *, model: str) -> ServingError:
    """Return the error of a response whose status is not 200.

    Args:
        status: of the response.
        retry_after: its header of that name.
        said: the JSON in it, or None.
        model: name of the requested model.
    """
    again_s = _seconds(retry_after)
    named = _named(status, said)
    match status:
        case 429:
            error: ServingError = QueueFull(
                f"The model's server is full. Try again in {again_s} s.", retry_after=again_s
            )
        case 503:
            error = Unavailable(
                f"The model's server accepts no requests now. Try again in {again_s} s.", retry_after=again_s
            )
        case 504:
            error = DeadlineExceeded("The model's server reached its own deadline before the first token.")
        case 400 | 413 | 422:
            error = BadRequest(
                f"The model's server refuses this request ({named}). Change what it names, or send another prompt.",
                code="upstream_refused",
            )
        case 401 | 403:
            error = InternalError(f"The model's server rejects the key ({named}).", code=_CODE)
        case 404:
            error = InternalError(f"The model's server has no {model} any more ({named}).", code=_CODE)
        case _:
            error = InternalError(
                f"The model's server failed on this request ({named}). Try again.", code=_CODE
            )
    return error


def in_stream(said: Any) -> ServingError:
    """Return the error of an error event in the middle of a response."""
    code = said.get("code") if isinstance(said, Mapping) else None
    if code in (503, "unavailable"):
        return broken("it is shutting down")
    return InternalError(
        f"The model's server failed in the middle of the text ({_named(None, {'error': said})}). Try again.",
        code=_CODE,
    )


def _named(status: int | None, said: Any) -> str:
    """Return the status and only the names in the response: the error's type and field."""
    error = said.get("error") if isinstance(said, Mapping) else None
    error = error if isinstance(error, Mapping) else {}
    names = [error.get("type"), error.get("param")]
    words = [str(name) for name in names if isinstance(name, str) and _NAME.fullmatch(name)]
    return ", ".join(([str(status)] if status else []) + words) or "it does not say why"


def _seconds(header: str | None) -> int:
    text = (header or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 5 and 0 < int(text) <= _MOST_RETRY_AFTER_S:
        return int(text)
    return RETRY_AFTER_S
