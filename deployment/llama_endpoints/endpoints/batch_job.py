"""A job of a batch endpoint."""

from pathlib import Path

from llama_endpoints.endpoints import polling
from llama_endpoints.endpoints.client import Client, asked
from llama_serving.errors import SetupError


def started(client: Client, endpoint: str, deployment: str | None, rows: str) -> str:
    """Start one; its name.

    Args:
        client: of batch endpoints.
        endpoint: its name.
        deployment: None is the endpoint's default.
        rows: a file or a folder here, which is uploaded, or one of Azure's names.

    Raises:
        SetupError: there are no such rows, or Azure refuses it.
    """
    from azure.ai.ml import Input

    client.existing(endpoint)
    if not Path(rows).exists() and ":" not in rows:
        raise SetupError(
            f"{rows} is no file, no folder and no name of Azure's. Name one, such as yaml/batch/samples."
        )
    given = Input(type="uri_file" if Path(rows).is_file() else "uri_folder", path=rows)
    with asked(f"a job of {endpoint}"), polling.silent():
        job = client.endpoints.invoke(endpoint_name=endpoint, deployment_name=deployment, input=given)
    return str(job.name)
