"""A secret out of an Azure key vault: read when it is needed, written nowhere."""

import re
from typing import Any, Final

from llama_endpoints.azure.credentials import NOT_INSTALLED, login
from llama_serving.errors import SetupError

_ADDRESS: Final = re.compile(
    r"(https://[A-Za-z0-9.-]+(?::\d+)?)/secrets/([A-Za-z0-9-]{1,127})(?:/([0-9a-f]{32}))?/?"
)


def secret_of(address: str, credential: Any = None, **client: Any) -> str:
    """The secret at an address such as `https://VAULT.vault.azure.net/secrets/NAME`, of its latest version if none is named.

    Args:
        address: of the secret.
        credential: who asks; None is whoever azure-identity finds.
        client: what azure-keyvault-secrets' client takes beside.

    Raises:
        SetupError: it is no such address, or the secret can't be read.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise SetupError(
            f"{address} is no secret's address. It must be https://VAULT.vault.azure.net/secrets/NAME."
        )
    try:
        from azure.core.exceptions import AzureError
        from azure.keyvault.secrets import SecretClient
    except ImportError:
        raise SetupError(NOT_INSTALLED) from None
    vault, name, version = found.groups()
    try:
        with SecretClient(vault, credential or login(), **client) as secrets:
            value = secrets.get_secret(name, version).value
    except (AzureError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise SetupError(
            f"{address} can't be read: {why} Give who asks the role Key Vault Secrets User, and "
            "check vault and name."
        ) from error
    if not value:
        raise SetupError(f"{address} is empty. Set it with `az keyvault secret set`.")
    return str(value)
