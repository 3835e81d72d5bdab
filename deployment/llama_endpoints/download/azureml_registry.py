"""Locate a registry model's files, with a signature to read them.

azure-ai-ml's only public way is a download that reads each file into memory as a whole. Only this file uses private parts of
azure-ai-ml.
"""

from typing import Any
from urllib.parse import urlsplit

from llama_endpoints.download.azure_blobs import BlobFolder
from llama_serving.errors import SetupError


def place_of(client: Any, registry: str, model: Any) -> BlobFolder:
    """Return where a model's files are.

    Args:
        client: azure-ai-ml's client for the registry.
        registry: the registry's name.
        model: the client's entity of the model.

    Raises:
        SetupError: its files are not in a blob container.
    """
    from azure.ai.ml._utils._registry_utils import get_storage_details_for_registry_assets
    from azure.core.credentials import AzureSasCredential

    path = urlsplit(model.path)
    container, _, folder = path.path.lstrip("/").partition("/")
    if not path.netloc or not container or not folder:
        raise SetupError(
            f"Registry {registry} does not store {model.name} in a blob container. Use a registry that does."
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
    credential = AzureSasCredential(given.query) if given.query else None  # public registries need none
    prefix = f"{folder.rstrip('/')}/"
    return BlobFolder(f"{given.scheme}://{given.netloc}", container, prefix, credential, str(model.version))
