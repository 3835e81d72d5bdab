"""Read secrets from Azure Key Vault. They are never stored."""

import re
from typing import Any, Final

from llama_endpoints.azure.credentials import NOT_INSTALLED, login
from llama_serving.errors import SetupError

_ADDRESS: Final = re.compile(
    r"(https://[A-Za-z0-9.-]+(?::\d+)?)/secrets/([A-Za-z0-9-]{1,127})(?:/([0-9a-f]{32}))?/?"
)


def secret_of(address: str, credential: Any = None, **client: Any) -> str:
    """Return the secret at an address such as `https://VAULT.vault.azure.net/secrets/NAME`, by default its latest version.

    Args:
        address: the secret's address.
        credential: the credential; None is azure-identity's default.
        client: further arguments for azure-keyvault-secrets' client.

    Raises:
        SetupError: the address is invalid, or the secret cannot be read.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise SetupError(f"Invalid secret address {address}: use https://VAULT.vault.azure.net/secrets/NAME.")
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
            f"Cannot read {address}: {why} Assign the role Key Vault Secrets User to your identity, and "
            "check the vault and the name."
        ) from error
    if not value:
        raise SetupError(f"{address} is empty. Set it with `az keyvault secret set`.")
    return str(value)
