"""`llama-endpoints status`, `logs`, `invoke`, `keys` and `delete`: an endpoint that Azure ML has."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.cli.workspace_options import client_of, where_options
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from llama_endpoints.endpoints.client import Client

FAILED: Final = 1
_ENDPOINT: Final = click.option("--endpoint", required=True, help="Its name.")
_BATCH: Final = click.option("--batch", is_flag=True, help="It is a batch endpoint.")
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.command()
@_ENDPOINT
@_BATCH
@_JSON
@where_options
def status(*, endpoint: str, batch: bool, as_json: bool, **where: Any) -> None:
    """How an endpoint in Azure ML is: its deployments, their traffic, a roll-out under way.

    \b
    Like: az ml online-endpoint show --name NAME; az ml online-deployment list --endpoint-name NAME
    """  # noqa: D301
    from llama_endpoints.endpoints.status import overview
    from llama_serving.contract.json_lines import json_line

    found = overview(client_of(**where, batch=batch), endpoint)
    if as_json:
        click.echo(json_line(found.to_dict()))
        return
    for line in found.lines():
        click.echo(line)


@click.command()
@_ENDPOINT
@click.option("--deployment", required=True, help="Of the endpoint.")
@click.option("--lines", default=100, show_default=True, type=click.IntRange(1), help="The last ones.")
@click.option(
    "--container",
    default="inference-server",
    show_default=True,
    type=click.Choice(["inference-server", "storage-initializer"]),
    help="The second one brings model and code.",
)
@where_options
def logs(*, endpoint: str, deployment: str, lines: int, container: str, **where: Any) -> None:
    """What a deployment of an online endpoint said last.

    \b
    Like: az ml online-deployment get-logs --endpoint-name NAME --name DEPLOYMENT --lines 100
    """  # noqa: D301
    client = client_of(**where)
    client.existing(endpoint)
    get = client.deployments.get_logs
    asked = f"the log of {endpoint}/{deployment}"
    text = client.found(asked, lambda: get(deployment, endpoint, lines, container_type=container))
    if text is None:
        raise SetupError(_no_deployment(client, endpoint, deployment))
    click.echo(text.rstrip("\n"))


@click.command()
@_ENDPOINT
@click.option("--deployment", help="This one alone, with or without traffic.")
@click.option(
    "--request",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with a JSON body, for an online endpoint.",
)
@click.option("--input", "rows", help="File or folder of rows, or azureml:..., for a job of a batch endpoint.")
@where_options
def invoke(
    *, endpoint: str, deployment: str | None, request: Path | None, rows: str | None, **where: Any
) -> None:
    """Send a request to an online endpoint, or start a job of a batch endpoint.

    The answer goes to standard output; with another status than 200 the body goes to standard error, and the exit code is 1. For a job
    it is the job's name.

    \b
    Like: az ml online-endpoint invoke --name NAME --request-file FILE
          az ml batch-endpoint invoke --name NAME --input FOLDER --input-type uri_folder --query name
    """  # noqa: D301
    from llama_endpoints.endpoints.batch_job import started
    from llama_endpoints.endpoints.scoring import OK, Scoring

    if (request is None) == (rows is None):
        raise SetupError("Give --request for an online endpoint or --input for a batch endpoint, one of them.")
    client = client_of(**where, batch=rows is not None)
    if deployment is not None and client.deployment(endpoint, deployment) is None:
        client.existing(endpoint)
        raise SetupError(_no_deployment(client, endpoint, deployment))
    if rows is not None:
        click.echo(started(client, endpoint, deployment, rows))
        return
    assert request is not None  # noqa: S101
    reply = Scoring(client, endpoint).ask(request.read_bytes(), deployment)
    if reply.status != OK:
        click.echo(f"{reply.status}: {reply.text}", err=True)
        raise SystemExit(FAILED)
    click.echo(reply.text)


@click.command()
@_ENDPOINT
@click.option(
    "--regenerate",
    type=click.Choice(["primary", "secondary"]),
    help="Make this one anew first; the old one is refused then.",
)
@where_options
def keys(*, endpoint: str, regenerate: str | None, **where: Any) -> None:
    """The keys of an online endpoint (or its token), as JSON.

    \b
    Like: az ml online-endpoint get-credentials --name NAME
          az ml online-endpoint regenerate-keys --name NAME --key-type primary
    """  # noqa: D301
    from llama_endpoints.endpoints.client import asked

    client = client_of(**where)
    client.existing(endpoint)
    if regenerate is not None:
        begin = client.endpoints.begin_regenerate_keys
        client.changed(
            lambda: begin(endpoint, key_type=regenerate),
            f"{regenerate} key",
            f"llama-endpoints keys --endpoint {endpoint}",
        )
    with asked(f"the keys of {endpoint}"):
        found = client.endpoints.get_keys(endpoint)
    click.echo(json.dumps(_credentials(found)))


@click.command()
@_ENDPOINT
@click.option("--deployment", help="This one alone; by default the endpoint with all of them.")
@_BATCH
@click.option("--yes", is_flag=True, help="Do not ask.")
@where_options
def delete(*, endpoint: str, deployment: str | None, batch: bool, yes: bool, **where: Any) -> None:
    """Delete an endpoint, or one of its deployments. What is not there is no error.

    \b
    Like: az ml online-endpoint delete --name NAME --yes
          az ml online-deployment delete --endpoint-name NAME --name DEPLOYMENT --yes
    """  # noqa: D301
    client = client_of(**where, batch=batch)
    there = client.endpoint(endpoint)
    if there is None or (deployment and client.deployment(endpoint, deployment) is None):
        click.echo(f"{endpoint}{f'/{deployment}' if deployment else ''} is not there.")
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
    again = f"llama-endpoints status --endpoint {endpoint}{' --batch' if batch else ''}"
    if deployment:
        client.changed(
            lambda: client.deployments.begin_delete(name=deployment, endpoint_name=endpoint),
            f"deleting {what}",
            again,
        )
    else:
        client.changed(lambda: client.endpoints.begin_delete(endpoint), f"deleting {what}", again)
    click.echo(f"Deleted {what}.")


def _check_unused(client: "Client", endpoint: Any, deployment: str) -> None:
    from llama_endpoints.endpoints.status import traffic_of

    share = traffic_of(client.kind, endpoint).get(deployment, 0)
    mirrored = (getattr(endpoint, "mirror_traffic", None) or {}).get(deployment, 0)
    if share or mirrored:
        raise SetupError(
            f"{endpoint.name}/{deployment} has {share or mirrored} % of the {'traffic' if share else 'mirrored traffic'}, and Azure keeps "
            "it. Give the traffic to another one first (`llama-endpoints rollout`, `llama-endpoints deploy batch --set-default`), or "
            "delete the endpoint."
        )


def _all_of(client: "Client", endpoint: str) -> str:
    names = [
        one.name
        for one in client.found("its deployments", lambda: list(client.deployments.list(endpoint))) or ()
    ]
    return ", ".join(names) or "no deployment"


def _no_deployment(client: "Client", endpoint: str, deployment: str) -> str:
    return f"{endpoint} has no deployment {deployment}. It has {_all_of(client, endpoint)}."


def _credentials(found: Any) -> Mapping[str, Any]:
    """As `az` shows them."""
    names = {
        "primary_key": "primaryKey",
        "secondary_key": "secondaryKey",
        "access_token": "accessToken",
        "expiry_time_utc": "expiryTimeUtc",
    }
    return {shown: getattr(found, name) for name, shown in names.items() if getattr(found, name, None)}


COMMANDS: Final = (status, logs, invoke, keys, delete)
