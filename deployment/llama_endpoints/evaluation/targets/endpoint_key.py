"""The key of an endpoint that is evaluated: from the environment, so that no command line and no file has it."""

import os
import re
from typing import Final

from llama_serving.errors import SetupError

KEY: Final = "LLAMA_EVALUATE_KEY"


def endpoint_key() -> str | None:
    """Return the key; None where there is none.

    Raises:
        SetupError: the variable holds something else.
    """
    key = os.environ.get(KEY, "").strip()
    if key and not re.fullmatch(r"[!-~]+", key):
        raise SetupError(f"{KEY} holds no key: one word of letters, digits and signs is needed.")
    return key or None
