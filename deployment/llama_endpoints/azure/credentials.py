"""Who asks Azure, and what Azure says to that in one line."""

import os
import re
from typing import Any, Final

from llama_serving.errors import SetupError

NOT_INSTALLED: Final = "Azure's client is not installed: pip install 'llama-endpoints[azure]'."
_QUERY: Final = re.compile(r"\?\S*")


def login() -> Any:
    """Whoever azure-identity finds: in a job its compute's managed identity, on an own machine who is logged in with `az login`.

    Raises:
        SetupError: azure-identity is not there.
    """
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise SetupError(NOT_INSTALLED) from None
    # (Azure ML names a compute's user-assigned identity in the first of these variables.)
    identity = os.environ.get("DEFAULT_IDENTITY_CLIENT_ID") or os.environ.get("AZURE_CLIENT_ID")
    return DefaultAzureCredential(managed_identity_client_id=identity)


def said(error: BaseException) -> str:
    """The first line of an error of Azure's, without the query of any address: a signature may stand there."""
    line = str(getattr(error, "message", None) or error).partition("\n")[0]
    return _QUERY.sub("", line).strip().rstrip(".") or type(error).__name__
