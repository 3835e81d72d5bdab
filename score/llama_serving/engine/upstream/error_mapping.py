"""What a server behind us says when it does not answer -> what our client is told. Nothing that it wrote is quoted but
names: its messages may hold a prompt."""

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
    """It can't be reached."""
    return Unavailable(
        f"The model's server can't be reached: {why}. Try again in {RETRY_AFTER_S} s.",
        retry_after=RETRY_AFTER_S,
    )


def broken(why: str) -> Unavailable:
    """It went in the middle of an answer, which nobody may ask for twice."""
    return Unavailable(
        f"The model's server broke off before the text was done: {why}. Try again in {RETRY_AFTER_S} s.",
        retry_after=RETRY_AFTER_S,
    )


def malformed(what: str) -> InternalError:
    """It sends what can't be an answer."""
    return InternalError(
        f"The model's server sent {what}. Try again; if it goes on, its version is not one that this server can use.",
        code=_CODE,
    )


def refused(status: int, retry_after: str | None, said: Any, *, model: str) -> ServingError:
    """It answered with a status other than 200.

    Args:
        status: of its answer.
        retry_after: that header.
        said: the JSON in it, or None.
        model: whom it was asked for.
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
                f"The model's server takes no requests now. Try again in {again_s} s.", retry_after=again_s
            )
        case 504:
            error = DeadlineExceeded("The model's server ran out of its own time before the first token.")
        case 400 | 413 | 422:
            error = BadRequest(
                f"The model's server refuses this request ({named}). Change what it names, or send another prompt.",
                code="upstream_refused",
            )
        case 401 | 403:
            error = InternalError(f"The model's server wants another key ({named}).", code=_CODE)
        case 404:
            error = InternalError(f"The model's server has no {model} any more ({named}).", code=_CODE)
        case _:
            error = InternalError(
                f"The model's server failed on this request ({named}). Try again.", code=_CODE
            )
    return error


def in_stream(said: Any) -> ServingError:
    """It reports an error in the middle of an answer."""
    code = said.get("code") if isinstance(said, Mapping) else None
    if code in (503, "unavailable"):
        return broken("it says that it ends")
    return InternalError(
        f"The model's server failed in the middle of the text ({_named(None, {'error': said})}). Try again.",
        code=_CODE,
    )


def _named(status: int | None, said: Any) -> str:
    """The status, and of what it says the names alone: the error's type, the field's."""
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
