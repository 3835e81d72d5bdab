"""Where in Azure's storage a model of a workspace, of a registry or of a datastore lies, by azure-ai-ml."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from llama_endpoints.azure.credentials import NOT_INSTALLED, login, said
from llama_endpoints.azure.sdk import quiet
from llama_endpoints.download.azure_blobs import Place
from llama_endpoints.download.azureml_uri import Kind, ModelUri
from llama_serving.errors import SetupError

_RETRIES: Final = 4
_SHOWN: Final = 5


def locate(uri: ModelUri) -> Place:
    """Where its files lie.

    Args:
        uri: with its workspace, where it is in one.

    Raises:
        SetupError: there is no such thing, who asks may not have it, or Azure can't be reached.
    """
    try:
        with quiet():
            import azure.ai.ml  # noqa: F401
    except ImportError:
        raise SetupError(NOT_INSTALLED) from None
    with quiet(), _errors(uri):
        client = _client(uri)
        if uri.kind is Kind.DATASTORE:
            return _in_datastore(client, uri, None)
        model = _model(client, uri)
        if uri.kind is Kind.REGISTRY:
            from llama_endpoints.download import azureml_registry

            return azureml_registry.place_of(client, uri.parts["registry"], model)
        inner = ModelUri.parse(str(model.path))
        if inner.kind is not Kind.DATASTORE:
            raise SetupError(
                f"{uri} is {model.path}, which is no folder of a datastore. Register a folder as the model."
            )
        return _in_datastore(client, inner, str(model.version))


def _client(uri: ModelUri) -> Any:
    from azure.ai.ml import MLClient

    given = {"show_progress": False, "enable_telemetry": False, "retry_total": _RETRIES}
    if uri.kind is Kind.REGISTRY:
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
    except (ResourceNotFoundError, ValidationException) as error:  # (the second: of a label)
        there = _versions(client, uri.parts["name"])
        if there:
            raise SetupError(f"There is no {uri}. Of {uri.parts['name']} it has {there}.") from error
        raise


def _versions(client: Any, name: str) -> str:
    """In words; empty where there are none, or it is not said."""
    from azure.core.exceptions import AzureError

    found: list[str] = []
    with suppress(AzureError):  # (what was asked for is not there: that is the error to tell)
        found = [str(model.version) for model in client.models.list(name)]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"version {', '.join(found[:_SHOWN])}{more}" if found else ""


def _in_datastore(client: Any, uri: ModelUri, version: str | None) -> Place:
    from azure.ai.ml.entities import AzureBlobDatastore, AzureDataLakeGen2Datastore

    store = client.datastores.get(uri.parts["datastore"], include_secrets=True)
    if not isinstance(store, AzureBlobDatastore | AzureDataLakeGen2Datastore):
        raise SetupError(
            f"The datastore {store.name} is of type {store.type.value}. Allowed are AzureBlob and AzureDataLakeGen2: copy the "
            "model to one of those."
        )
    container = store.container_name if isinstance(store, AzureBlobDatastore) else store.filesystem
    account = f"{store.protocol}://{store.account_name}.blob.{store.endpoint}"  # (of a data lake, too)
    return Place(
        account, container, f"{uri.parts['path'].strip('/')}/", _credential(store.credentials), version
    )


def _credential(given: Any) -> Any:
    """Whoever may read a datastore: what it keeps, else who asks."""
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
    """What Azure has said, and what can be done about it."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        yield
    except AzureError as error:
        status, why = getattr(error, "status_code", None), said(error)
        if isinstance(error, ClientAuthenticationError) or status == 401:
            sentence = (
                f"Azure does not know who asks for {uri}: {why}. Run `az login`, again where the login has expired; in a job "
                "give the compute an identity"
            )
        elif status == 403:
            sentence = (
                f"{uri} may not be read: {why}. Ask for the role AzureML Data Scientist on the workspace, of a registry "
                "AzureML Registry User"
            )
        elif status == 404:
            sentence = f"There is no {uri}: {why}. `{uri.listing()}` lists what there is"
        elif status is None:
            sentence = f"Azure can't be asked for {uri}: {why}. Check the network and its proxy (HTTPS_PROXY)"
        else:
            sentence = f"Azure says {status} to {uri}: {why}. Try again later"
        raise SetupError(f"{sentence}.") from error
