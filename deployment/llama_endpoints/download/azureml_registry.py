"""Where a registry keeps a model's files, and a signature to read them by.

azure-ai-ml has no public way to it but a download that reads each file whole into memory: this is the one file that takes of it
what is private.
"""

from typing import Any
from urllib.parse import urlsplit

from llama_endpoints.download.azure_blobs import Place
from llama_serving.errors import SetupError


def place_of(client: Any, registry: str, model: Any) -> Place:
    """The place of a model.

    Args:
        client: azure-ai-ml's, of the registry.
        registry: its name.
        model: what the client says of it.

    Raises:
        SetupError: its files don't lie in a container.
    """
    from azure.ai.ml._utils._registry_utils import get_storage_details_for_registry_assets
    from azure.core.credentials import AzureSasCredential

    path = urlsplit(model.path)
    container, _, folder = path.path.lstrip("/").partition("/")
    if not path.netloc or not container or not folder:
        raise SetupError(
            f"The registry {registry} keeps {model.name} in no container of blobs. Use one that does."
        )
    address, _ = get_storage_details_for_registry_assets(
        service_client=client.models._registry_service_client,  # noqa: SLF001
        asset_type="models",
        asset_name=model.name,
        asset_version=model.version,
        rg_name=client.resource_group_name,
        reg_name=registry,
        uri=model.path,
    )
    given = urlsplit(address)
    credential = AzureSasCredential(given.query) if given.query else None  # (a public one asks for none)
    prefix = f"{folder.rstrip('/')}/"
    return Place(f"{given.scheme}://{given.netloc}", container, prefix, credential, str(model.version))
