"""Azure credentials, and Azure's errors in one line."""

import os
import re
from typing import Any, Final

from llama_serving.errors import SetupError

NOT_INSTALLED: Final = "Azure's client is not installed: pip install 'llama-endpoints[azure]'."
_QUERY: Final = re.compile(r"\?\S*")


def login() -> Any:
    """Return azure-identity's credential: in a job the compute's managed identity, otherwise the `az login` user.

    Raises:
        SetupError: azure-identity is not installed.
    """
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise SetupError(NOT_INSTALLED) from None
    # Azure ML puts the id of a compute's user-assigned identity in the first of these variables.
    identity = os.environ.get("DEFAULT_IDENTITY_CLIENT_ID") or os.environ.get("AZURE_CLIENT_ID")
    return DefaultAzureCredential(managed_identity_client_id=identity)


def error_line(error: BaseException) -> str:
    """Return the first line of an Azure error, without the queries of URLs, which may hold a signature."""
    line = str(getattr(error, "message", None) or error).partition("\n")[0]
    return _QUERY.sub("", line).strip().rstrip(".") or type(error).__name__
