"""The key of an endpoint that is evaluated."""

from typing import Final

from llama_endpoints.connection.key import key_of

KEY: Final = "LLAMA_EVALUATE_KEY"


def endpoint_key() -> str | None:
    """Return the key; None where there is none.

    Raises:
        SetupError: the variable holds something else.
    """
    return key_of(KEY)
