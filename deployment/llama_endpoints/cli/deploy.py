"""`llama-endpoints deploy`: create or update an endpoint and its deployment from their files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.cli.workspace_options import client_of, workspace_options

if TYPE_CHECKING:
    from llama_endpoints.endpoints.files import Files
    from llama_endpoints.endpoints.target import Target

FAILED: Final = 1
_FILE: Final = click.argument("file", metavar="DEPLOYMENT.yml", type=click.Path(path_type=Path))
_NAME: Final = click.option("--endpoint", help="Name of the endpoint, instead of the file's.")
_DRY: Final = click.option("--dry-run", is_flag=True, help="Print the plan without changing anything.")
_KEEP: Final = click.option("--keep-failed", is_flag=True, help="Keep a failed deployment for inspection.")


@click.group()
def deploy() -> None:
    """Create or update an Azure ML endpoint from its files. Only differences are applied."""


@deploy.command()
@_FILE
@_NAME
@click.option(
    "--request",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON body of the test request a new deployment must answer. Default: yaml/online/samples/completion.json.",
)
@click.option(
    "--all-traffic",
    is_flag=True,
    help="Send all traffic to the deployment, even if another one has traffic (see rollout).",
)
@_DRY
@_KEEP
@workspace_options
def online(  # noqa: PLR0913  (one argument an option)
    *,
    file: Path,
    endpoint: str | None,
    request: Path | None,
    all_traffic: bool,
    dry_run: bool,
    keep_failed: bool,
    **workspace: Any,
) -> None:
    """Create or update a managed or Kubernetes online deployment.

    Creates the model, environment, endpoint and deployment that do not exist, sends the deployment the --request, and gives it
    the traffic if no deployment has any. The other files are found in the folders around the deployment's. A failed deployment
    is deleted, or restored to its previous version.

    \b
    Signs: = unchanged, + create, ~ update, . wait, ? test request, > move traffic.
    Exit codes: 1 the deployment failed, 2 Azure refused a step.

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
        client_of(**workspace), files, _named(files, endpoint), all_traffic, request=request or sample(files)
    )
    _apply(target, dry_run=dry_run, keep_failed=keep_failed)


@deploy.command()
@_FILE
@_NAME
@click.option("--set-default", is_flag=True, help="Make it the endpoint's default, even if there is one.")
@_DRY
@_KEEP
@workspace_options
def batch(
    *, file: Path, endpoint: str | None, set_default: bool, dry_run: bool, keep_failed: bool, **workspace: Any
) -> None:
    """Create or update a batch deployment and its compute cluster.

    \b
    Example:
      llama-endpoints deploy batch yaml/batch/codellama-7b-hf.yml --set-default
    """  # noqa: D301
    from llama_endpoints.endpoints.batch import BatchTarget
    from llama_endpoints.endpoints.files import Files
    from llama_endpoints.validate.kinds import SpecKind

    files = Files.around(file, SpecKind.BATCH_DEPLOYMENT)
    target = BatchTarget(client_of(**workspace, batch=True), files, _named(files, endpoint), set_default)
    _apply(target, dry_run=dry_run, keep_failed=keep_failed)


def _named(files: "Files", endpoint: str | None) -> str:
    return endpoint or files.deployment.text("endpoint_name") or files.endpoint.name


def _apply(target: "Target", *, dry_run: bool, keep_failed: bool) -> None:
    from llama_endpoints.endpoints.apply import DeploymentFailed, DeployRunner
    from llama_endpoints.endpoints.plan import Action

    runner = DeployRunner(target, click.echo, keep_failed)
    if dry_run:
        steps = runner.steps()
        for step in steps:
            click.echo(str(step))
        changes = sum(step.action not in {Action.KEEP, Action.TEST} for step in steps)
        click.echo(f"{changes} change{'' if changes == 1 else 's'}. Nothing was applied.")
        return
    try:
        runner.run()
    except DeploymentFailed as error:
        click.echo(str(error), err=True)
        raise SystemExit(FAILED) from error
    click.echo(f"{target.endpoint}/{target.name} is up. {_cost(target)}")


def _cost(target: "Target") -> str:
    if target.client.kind == "batch":
        return "It costs nothing while no job runs."
    return f"It is billed until you delete it: `llama-endpoints delete --endpoint {target.endpoint}`."
