"""The key of a server, from the environment, so that no command line and no file has it."""

import os
import re

from llama_serving.errors import SetupError


def key_of(variable: str) -> str | None:
    """Return the key that a variable holds; None where there is none.

    Raises:
        SetupError: the variable holds something else.
    """
    key = os.environ.get(variable, "").strip()
    if key and not re.fullmatch(r"[!-~]+", key):
        raise SetupError(f"{variable} holds no key: one word of letters, digits and signs is needed.")
    return key or None
