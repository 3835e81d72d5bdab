"""Locate a model of a workspace, registry or datastore in Azure Storage, through azure-ai-ml."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from llama_endpoints.azure.credentials import NOT_INSTALLED, error_line, login
from llama_endpoints.azure.sdk import quiet
from llama_endpoints.download.azure_blobs import BlobFolder
from llama_endpoints.download.azureml_uri import ModelUri, UriKind
from llama_serving.errors import SetupError

_RETRIES: Final = 4
_SHOWN: Final = 5


def locate(uri: ModelUri) -> BlobFolder:
    """Return where a model's files are.

    Args:
        uri: the model, with its workspace if it is in one.

    Raises:
        SetupError: it does not exist, cannot be read, or Azure cannot be reached.
    """
    try:
        with quiet():
            import azure.ai.ml  # noqa: F401
    except ImportError:
        raise SetupError(NOT_INSTALLED) from None
    with quiet(), _errors(uri):
        client = _client(uri)
        if uri.kind is UriKind.DATASTORE:
            return _in_datastore(client, uri, None)
        model = _model(client, uri)
        if uri.kind is UriKind.REGISTRY:
            from llama_endpoints.download import azureml_registry

            return azureml_registry.place_of(client, uri.parts["registry"], model)
        inner = ModelUri.parse(str(model.path))
        if inner.kind is not UriKind.DATASTORE:
            raise SetupError(
                f"{uri} is stored at {model.path}, which is not a datastore folder. Register a folder as the model."
            )
        return _in_datastore(client, inner, str(model.version))


def _client(uri: ModelUri) -> Any:
    from azure.ai.ml import MLClient

    given = {"show_progress": False, "enable_telemetry": False, "retry_total": _RETRIES}
    if uri.kind is UriKind.REGISTRY:
        return MLClient(login(), registry_name=uri.parts["registry"], **given)
    where = (uri.parts[part] for part in ("subscription", "group", "workspace"))
    return MLClient(login(), *where, **given)


def _model(client: Any, uri: ModelUri) -> Any:
    from azure.ai.ml.exceptions import ValidationException
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return client.models.get(
            uri.parts["name"], version=uri.parts.get("version"), label=uri.parts.get("label")
        )
    except (ResourceNotFoundError, ValidationException) as error:  # the second for a label
        there = _versions(client, uri.parts["name"])
        if there:
            raise SetupError(f"{uri} not found. Of {uri.parts['name']} there is {there}.") from error
        raise


def _versions(client: Any, name: str) -> str:
    """Return the existing versions in words; empty if there are none or they cannot be listed."""
    from azure.core.exceptions import AzureError

    found: list[str] = []
    with suppress(AzureError):  # the missing model is the error to report
        found = [str(model.version) for model in client.models.list(name)]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"version {', '.join(found[:_SHOWN])}{more}" if found else ""


def _in_datastore(client: Any, uri: ModelUri, version: str | None) -> BlobFolder:
    from azure.ai.ml.entities import AzureBlobDatastore, AzureDataLakeGen2Datastore

    store = client.datastores.get(uri.parts["datastore"], include_secrets=True)
    if not isinstance(store, AzureBlobDatastore | AzureDataLakeGen2Datastore):
        raise SetupError(
            f"Datastore {store.name} has the type {store.type.value}. Allowed are AzureBlob and AzureDataLakeGen2: copy the "
            "model to one of those."
        )
    container = store.container_name if isinstance(store, AzureBlobDatastore) else store.filesystem
    account = f"{store.protocol}://{store.account_name}.blob.{store.endpoint}"  # also for a data lake
    return BlobFolder(
        account, container, f"{uri.parts['path'].strip('/')}/", _credential(store.credentials), version
    )


def _credential(given: Any) -> Any:
    """Return the datastore's stored credential, or the user's."""
    from azure.ai.ml.entities import (
        AccountKeyConfiguration,
        SasTokenConfiguration,
        ServicePrincipalConfiguration,
    )
    from azure.core.credentials import AzureSasCredential
    from azure.identity import ClientSecretCredential

    if isinstance(given, AccountKeyConfiguration):
        return given.account_key
    if isinstance(given, SasTokenConfiguration):
        return AzureSasCredential(given.sas_token)
    if isinstance(given, ServicePrincipalConfiguration):
        return ClientSecretCredential(
            given.tenant_id, given.client_id, given.client_secret, authority=given.authority_url
        )
    return login()


@contextmanager
def _errors(uri: ModelUri) -> Iterator[None]:
    """Turn Azure's errors into one sentence that says what to do."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        yield
    except AzureError as error:
        status, why = getattr(error, "status_code", None), error_line(error)
        if isinstance(error, ClientAuthenticationError) or status == 401:
            sentence = f"Azure authentication failed for {uri}: {why}. Run `az login`; in a job, give the compute an identity"
        elif status == 403:
            sentence = (
                f"Permission denied for {uri}: {why}. Ask for the role AzureML Data Scientist on the workspace, or for a registry "
                "AzureML Registry User"
            )
        elif status == 404:
            sentence = f"{uri} not found: {why}. List what exists with `{uri.listing()}`"
        elif status is None:
            sentence = f"Cannot reach Azure for {uri}: {why}. Check the network and its proxy (HTTPS_PROXY)"
        else:
            sentence = f"Azure answered {status} for {uri}: {why}. Try again later"
        raise SetupError(f"{sentence}.") from error
