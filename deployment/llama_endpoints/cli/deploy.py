"""`llama-endpoints deploy`: an endpoint and its deployment, from their files, to what Azure runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.cli.workspace_options import client_of, where_options

if TYPE_CHECKING:
    from llama_endpoints.endpoints.files import Files
    from llama_endpoints.endpoints.target import Target

FAILED: Final = 1
_FILE: Final = click.argument("file", metavar="DEPLOYMENT.yml", type=click.Path(path_type=Path))
_NAME: Final = click.option("--endpoint", help="Name of the endpoint, where it is another than the file's.")
_DRY: Final = click.option("--dry-run", is_flag=True, help="Print the plan of changes, and change nothing.")
_KEEP: Final = click.option(
    "--keep-failed", is_flag=True, help="Leave a deployment that fails as it is, to be looked at."
)


@click.group()
def deploy() -> None:
    """Bring up an endpoint in Azure ML from its files; given again, only what differs is changed."""


@deploy.command()
@_FILE
@_NAME
@click.option(
    "--request",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What a new deployment is asked before it gets traffic; yaml/online/samples/completion.json by default.",
)
@click.option(
    "--all-traffic",
    is_flag=True,
    help="All traffic goes there; by default only where nobody has any (see rollout).",
)
@_DRY
@_KEEP
@where_options
def online(  # noqa: PLR0913  (one argument an option)
    *,
    file: Path,
    endpoint: str | None,
    request: Path | None,
    all_traffic: bool,
    dry_run: bool,
    keep_failed: bool,
    **where: Any,
) -> None:
    """Bring up a deployment of an online endpoint: managed, or on Kubernetes.

    Model, environment, endpoint and deployment are made where they are not there, the deployment is asked with --request, and gets the
    traffic where nobody has any. The endpoint's file, the model's and the environment's are found around the deployment's. A deployment
    that fails is deleted again, or becomes what it was before.

    \b
    Signs: = stays, + is made, ~ is changed, . is waited for, ? is asked, > gets the traffic.
    Exit code 1 where the deployment has failed, 2 where Azure refuses something.

    \b
    Examples:
      llama-endpoints deploy online yaml/online/codellama-7b-hf.yml --dry-run
      llama-endpoints deploy online yaml/online/codellama-7b-hf.yml --endpoint my-code
    """  # noqa: D301
    from llama_endpoints.endpoints.files import Files
    from llama_endpoints.endpoints.online import OnlineTarget, sample
    from llama_endpoints.validate.kinds import ONLINE_DEPLOYMENTS

    files = Files.around(file, *ONLINE_DEPLOYMENTS)
    target = OnlineTarget(
        client_of(**where), files, _named(files, endpoint), all_traffic, request=request or sample(files)
    )
    _carry_out(target, dry_run=dry_run, keep_failed=keep_failed)


@deploy.command()
@_FILE
@_NAME
@click.option(
    "--set-default", is_flag=True, help="Make it the endpoint's default; by default only where there is none."
)
@_DRY
@_KEEP
@where_options
def batch(
    *, file: Path, endpoint: str | None, set_default: bool, dry_run: bool, keep_failed: bool, **where: Any
) -> None:
    """Bring up a deployment of a batch endpoint, and the cluster that it runs on.

    \b
    Example:
      llama-endpoints deploy batch yaml/batch/codellama-7b-hf.yml --set-default
    """  # noqa: D301
    from llama_endpoints.endpoints.batch import BatchTarget
    from llama_endpoints.endpoints.files import Files
    from llama_endpoints.validate.kinds import Kind

    files = Files.around(file, Kind.BATCH_DEPLOYMENT)
    target = BatchTarget(client_of(**where, batch=True), files, _named(files, endpoint), set_default)
    _carry_out(target, dry_run=dry_run, keep_failed=keep_failed)


def _named(files: "Files", endpoint: str | None) -> str:
    return endpoint or files.deployment.text("endpoint_name") or files.endpoint.name


def _carry_out(target: "Target", *, dry_run: bool, keep_failed: bool) -> None:
    from llama_endpoints.endpoints.apply import Deploying, Unsuccessful
    from llama_endpoints.endpoints.plan import Act

    deploying = Deploying(target, click.echo, keep_failed)
    if dry_run:
        steps = deploying.steps()
        for step in steps:
            click.echo(str(step))
        changes = sum(step.act not in {Act.KEEP, Act.ASK} for step in steps)
        click.echo(f"{changes} change{'' if changes == 1 else 's'}. Nothing was done.")
        return
    try:
        deploying.run()
    except Unsuccessful as error:
        click.echo(str(error), err=True)
        raise SystemExit(FAILED) from error
    click.echo(f"{target.endpoint}/{target.name} is up. {_cost(target)}")


def _cost(target: "Target") -> str:
    if target.client.kind == "batch":
        return "It costs nothing while no job runs."
    return f"It costs money as long as it is there: `llama-endpoints delete --endpoint {target.endpoint}` takes it away."
