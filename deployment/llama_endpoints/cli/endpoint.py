"""`llama-endpoints status`, `logs`, `invoke`, `keys` and `delete`: manage an existing Azure ML endpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.cli.workspace_options import client_of, workspace_options
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from llama_endpoints.endpoints.client import EndpointsClient

FAILED: Final = 1
_ENDPOINT: Final = click.option("--endpoint", required=True, help="Name of the endpoint.")
_BATCH: Final = click.option("--batch", is_flag=True, help="The endpoint is a batch endpoint.")
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command()
@_ENDPOINT
@_BATCH
@_JSON
@workspace_options
def status(*, endpoint: str, batch: bool, as_json: bool, **workspace: Any) -> None:
    """Show an endpoint's deployments, traffic and roll-out.

    \b
    Like: az ml online-endpoint show --name NAME; az ml online-deployment list --endpoint-name NAME
    """  # noqa: D301
    from llama_endpoints.endpoints.status import endpoint_status
    from llama_serving.contract.json_lines import json_line

    found = endpoint_status(client_of(**workspace, batch=batch), endpoint)
    if as_json:
        click.echo(json_line(found.to_dict()))
        return
    for line in found.lines():
        click.echo(line)


@click.command()
@_ENDPOINT
@click.option("--deployment", required=True, help="Name of the deployment.")
@click.option("--lines", default=100, type=click.IntRange(1), help="Number of lines, from the end.")
@click.option(
    "--container",
    default="inference-server",
    type=click.Choice(["inference-server", "storage-initializer"]),
    help="storage-initializer downloads the model and the code.",
)
@workspace_options
def logs(*, endpoint: str, deployment: str, lines: int, container: str, **workspace: Any) -> None:
    """Print the last log lines of an online deployment.

    \b
    Like: az ml online-deployment get-logs --endpoint-name NAME --name DEPLOYMENT --lines 100
    """  # noqa: D301
    client = client_of(**workspace)
    client.get_endpoint(endpoint)
    get = client.deployments.get_logs
    what = f"the log of {endpoint}/{deployment}"
    text = client.get_or_none(what, lambda: get(deployment, endpoint, lines, container_type=container))
    if text is None:
        raise SetupError(_no_deployment(client, endpoint, deployment))
    click.echo(text.rstrip("\n"))


@click.command()
@_ENDPOINT
@click.option("--deployment", help="Use this deployment, regardless of traffic.")
@click.option(
    "--request",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with a JSON body, for an online endpoint.",
)
@click.option("--input", "rows", help="File, folder or azureml: URI with rows, for a job of a batch endpoint.")
@workspace_options
def invoke(
    *, endpoint: str, deployment: str | None, request: Path | None, rows: str | None, **workspace: Any
) -> None:
    """Send a request to an online endpoint, or start a job of a batch endpoint.

    Prints the answer, or the job's name. If the status is not 200, the body goes to standard error and the exit code is 1.

    \b
    Like: az ml online-endpoint invoke --name NAME --request-file FILE
          az ml batch-endpoint invoke --name NAME --input FOLDER --input-type uri_folder --query name
    """  # noqa: D301
    from llama_endpoints.endpoints.batch_job import start_job
    from llama_endpoints.endpoints.scoring import OK, Scoring

    if (request is None) == (rows is None):
        raise SetupError("Give either --request (online endpoint) or --input (batch endpoint).")
    client = client_of(**workspace, batch=rows is not None)
    if deployment is not None and client.find_deployment(endpoint, deployment) is None:
        client.get_endpoint(endpoint)
        raise SetupError(_no_deployment(client, endpoint, deployment))
    if rows is not None:
        click.echo(start_job(client, endpoint, deployment, rows))
        return
    assert request is not None  # noqa: S101
    reply = Scoring(client, endpoint).send(request.read_bytes(), deployment)
    if reply.status != OK:
        click.echo(f"{reply.status}: {reply.text}", err=True)
        raise SystemExit(FAILED)
    click.echo(reply.text)


@click.command()
@_ENDPOINT
@click.option(
    "--regenerate",
    type=click.Choice(["primary", "secondary"]),
    help="Regenerate this key first. The old one stops working.",
)
@workspace_options
def keys(*, endpoint: str, regenerate: str | None, **workspace: Any) -> None:
    """Print the keys (or token) of an online endpoint as JSON.

    \b
    Like: az ml online-endpoint get-credentials --name NAME
          az ml online-endpoint regenerate-keys --name NAME --key-type primary
    """  # noqa: D301
    from llama_endpoints.endpoints.client import azure_errors

    client = client_of(**workspace)
    client.get_endpoint(endpoint)
    if regenerate is not None:
        begin = client.endpoints.begin_regenerate_keys
        client.run_operation(
            lambda: begin(endpoint, key_type=regenerate),
            f"{regenerate} key",
            f"llama-endpoints keys --endpoint {endpoint}",
        )
    with azure_errors(f"the keys of {endpoint}"):
        found = client.endpoints.get_keys(endpoint)
    click.echo(json.dumps(_credentials(found)))


@click.command()
@_ENDPOINT
@click.option("--deployment", help="Delete this deployment only.")
@_BATCH
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@workspace_options
def delete(*, endpoint: str, deployment: str | None, batch: bool, yes: bool, **workspace: Any) -> None:
    """Delete an endpoint, or one of its deployments. Succeeds if it does not exist.

    \b
    Like: az ml online-endpoint delete --name NAME --yes
          az ml online-deployment delete --endpoint-name NAME --name DEPLOYMENT --yes
    """  # noqa: D301
    client = client_of(**workspace, batch=batch)
    there = client.find_endpoint(endpoint)
    if there is None or (deployment and client.find_deployment(endpoint, deployment) is None):
        click.echo(f"{endpoint}{f'/{deployment}' if deployment else ''} does not exist.")
        return
    what = (
        f"the deployment {endpoint}/{deployment}"
        if deployment
        else f"the endpoint {endpoint} with {_all_of(client, endpoint)}"
    )
    if deployment:
        _check_unused(client, there, deployment)
    if not yes:
        click.confirm(f"Delete {what}?", abort=True)
    status_command = f"llama-endpoints status --endpoint {endpoint}{' --batch' if batch else ''}"
    if deployment:
        client.run_operation(
            lambda: client.deployments.begin_delete(name=deployment, endpoint_name=endpoint),
            f"deleting {what}",
            status_command,
        )
    else:
        client.run_operation(
            lambda: client.endpoints.begin_delete(endpoint), f"deleting {what}", status_command
        )
    click.echo(f"Deleted {what}.")


def _check_unused(client: "EndpointsClient", endpoint: Any, deployment: str) -> None:
    from llama_endpoints.endpoints.target import traffic_of

    share = traffic_of(client.kind, endpoint).get(deployment, 0)
    mirrored = (getattr(endpoint, "mirror_traffic", None) or {}).get(deployment, 0)
    if share or mirrored:
        raise SetupError(
            f"{endpoint.name}/{deployment} has {share or mirrored} % of the {'traffic' if share else 'mirrored traffic'}, so Azure cannot delete it. "
            "Move the traffic first (`llama-endpoints rollout`, `llama-endpoints deploy batch --set-default`), or delete the endpoint."
        )


def _all_of(client: "EndpointsClient", endpoint: str) -> str:
    names = [
        one.name
        for one in client.get_or_none("its deployments", lambda: list(client.deployments.list(endpoint))) or ()
    ]
    return ", ".join(names) or "none"


def _no_deployment(client: "EndpointsClient", endpoint: str, deployment: str) -> str:
    return f"{endpoint} has no deployment {deployment}. Its deployments: {_all_of(client, endpoint)}."


def _credentials(found: Any) -> Mapping[str, Any]:
    """Return the credentials under the names that `az` uses."""
    names = {
        "primary_key": "primaryKey",
        "secondary_key": "secondaryKey",
        "access_token": "accessToken",
        "expiry_time_utc": "expiryTimeUtc",
    }
    return {shown: getattr(found, name) for name, shown in names.items() if getattr(found, name, None)}


COMMANDS: Final = (status, logs, invoke, keys, delete)
