"""Start jobs of a batch endpoint."""

from pathlib import Path

from llama_endpoints.endpoints import polling
from llama_endpoints.endpoints.client import EndpointsClient, azure_errors
from llama_serving.errors import SetupError


def start_job(client: EndpointsClient, endpoint: str, deployment: str | None, rows: str) -> str:
    """Start a job and return its name.

    Args:
        client: a client for batch endpoints.
        endpoint: the endpoint's name.
        deployment: the deployment's name; None is the endpoint's default.
        rows: a local file or folder, which is uploaded, or an Azure data reference.

    Raises:
        SetupError: `rows` does not exist, or Azure refuses the job.
    """
    from azure.ai.ml import Input

    client.get_endpoint(endpoint)
    if not Path(rows).exists() and ":" not in rows:
        raise SetupError(
            f"{rows} is not a file, a folder or an Azure data reference. Pass one, such as yaml/batch/samples."
        )
    given = Input(type="uri_file" if Path(rows).is_file() else "uri_folder", path=rows)
    with azure_errors(f"a job of {endpoint}"), polling.silent():
        job = client.endpoints.invoke(endpoint_name=endpoint, deployment_name=deployment, input=given)
    return str(job.name)
