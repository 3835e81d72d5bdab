"""What can go wrong, each with the HTTP status and the code that a client sees.

    ServingError
    ├── BadRequest             400  invalid_request, unknown_parameter, context_exceeded, …
    ├── Unauthorized           401  unauthorized
    ├── NotFound               404  not_found, model_not_found
    ├── MethodNotAllowed       405  method_not_allowed
    ├── RequestTimeout         408  request_timeout
    ├── BodyTooLarge           413  body_too_large
    ├── UnsupportedMediaType   415  unsupported_media_type
    ├── QueueFull              429  queue_full           + Retry-After
    ├── RateLimited            429  rate_limit_exceeded  + Retry-After
    ├── InternalError          500  internal_error
    ├── Unavailable            503  unavailable          + Retry-After
    │   └── GuardUnavailable   503  guard_unavailable    + Retry-After
    └── DeadlineExceeded       504  deadline_exceeded
    SetupError                      a start that can't succeed: one sentence, exit code 2

A message says what was wrong, what is allowed and what to do. It never holds a prompt or a traceback.
"""

import traceback
from collections.abc import Iterator
from typing import Any, ClassVar, Final

OPENAI_CODES: Final = {
    "context_exceeded": "context_length_exceeded",
    "queue_full": "rate_limit_exceeded",
    "unauthorized": "invalid_api_key",
}
"""OpenAI's own codes, which its clients look for, where they differ from ours (`model_not_found` is the same)."""


class ServingError(Exception):
    """An error that is reported to the client.

    Args:
        message: what was wrong, what is allowed, what to do.
        code: the machine-readable code, where the class's own is too coarse.
        param: the path of the field at fault, such as `input_data.parameters.top_p`.
        index: which prompt of the request is at fault, from 0.
        retry_after: seconds after which trying again makes sense.
    """

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal_error"
    openai_type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        index: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.index = index
        self.retry_after = retry_after

    def at(self, *, param: str | None = None, index: int | None = None) -> "ServingError":
        """Return the same error with `param` and `index` filled in where they are not set yet."""
        return type(self)(
            self.message,
            code=self.code,
            param=self.param if self.param is not None else param,
            index=self.index if self.index is not None else index,
            retry_after=self.retry_after,
        )

    def body(self, request_id: str | None = None, *, openai: bool = False) -> dict[str, Any]:
        """Return the JSON body of an error response. `openai` uses OpenAI's codes and adds the field its clients read."""
        fields = {
            "type": self.openai_type if openai else None,
            "code": OPENAI_CODES.get(self.code, self.code) if openai else self.code,
            "message": self.message,
            "param": self.param,
            "index": self.index,
            "retry_after": self.retry_after,
            "request_id": request_id,
        }
        return {"error": {name: value for name, value in fields.items() if value is not None}}


class BadRequest(ServingError):
    """The request is invalid; repeating it cannot succeed."""

    status = 400
    default_code = "invalid_request"
    openai_type = "invalid_request_error"


class Unauthorized(ServingError):
    """The API key is missing or wrong."""

    status = 401
    default_code = "unauthorized"
    openai_type = "authentication_error"


class NotFound(ServingError):
    """No such path or model."""

    status = 404
    default_code = "not_found"
    openai_type = "invalid_request_error"


class MethodNotAllowed(ServingError):
    """The path does not accept this HTTP method."""

    status = 405
    default_code = "method_not_allowed"
    openai_type = "invalid_request_error"


class RequestTimeout(ServingError):
    """The body did not arrive in time."""

    status = 408
    default_code = "request_timeout"
    openai_type = "invalid_request_error"


class BodyTooLarge(ServingError):
    """The body is larger than `LLAMA_MAX_BODY`."""

    status = 413
    default_code = "body_too_large"
    openai_type = "invalid_request_error"


class UnsupportedMediaType(ServingError):
    """The body is not JSON, not UTF-8, or has a content encoding."""

    status = 415
    default_code = "unsupported_media_type"
    openai_type = "invalid_request_error"


class QueueFull(ServingError):
    """The server is at its limit of requests."""

    status = 429
    default_code = "queue_full"
    openai_type = "rate_limit_error"


class RateLimited(ServingError):
    """The limit of the client's key is reached."""

    status = 429
    default_code = "rate_limit_exceeded"
    openai_type = "rate_limit_error"


class InternalError(ServingError):
    """An unexpected failure; the log has the details under the request's id."""


class Unavailable(ServingError):
    """The model is loading or draining, or its engine has stopped."""

    status = 503
    default_code = "unavailable"


class GuardUnavailable(Unavailable):
    """A guard could not check the prompt or the text."""


class DeadlineExceeded(ServingError):
    """The deadline passed before the first token."""

    status = 504
    default_code = "deadline_exceeded"


class SetupError(Exception):
    """The command or server cannot start: one clear sentence, exit code 2."""


def frames(error: BaseException) -> str:
    """Return the stack frames of an error and its causes, first cause first, for the log.

    Messages are left out: a library's message may quote its input, which may be a prompt.
    """
    return "\n".join(
        "".join(traceback.format_tb(one.__traceback__)) + f"{type(one).__module__}.{type(one).__qualname__}"
        for one in reversed(list(_causes(error)))
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
