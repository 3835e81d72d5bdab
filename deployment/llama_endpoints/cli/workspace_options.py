"""Options that select the workspace, named as in `az ml`, and the client for it."""

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from llama_endpoints.azure import workspace
from llama_endpoints.azure.workspace import Workspace
from llama_endpoints.cli.options import options

if TYPE_CHECKING:
    from llama_endpoints.endpoints.client import EndpointsClient

workspace_options = options(
    click.option(
        "--workspace-name", "-w", "name", help="Azure ML workspace. Default: the job's, config.json's or az's."
    ),
    click.option("--resource-group", "-g", "group", help="Resource group of the workspace. Default: az's."),
    click.option("--subscription", help="Subscription id. Default: az's."),
)


def chosen(subscription: str | None, group: str | None, name: str | None) -> Workspace:
    """Return the workspace given, completed from the default workspace.

    Raises:
        SetupError: a part is neither given nor in the default.
    """
    if subscription and group and name:
        return Workspace(subscription, group, name)
    given = {"subscription": subscription, "group": group, "name": name}
    return replace(workspace.default(), **{key: value for key, value in given.items() if value})


def client_of(
    subscription: str | None, group: str | None, name: str | None, *, batch: bool = False
) -> "EndpointsClient":
    """Return a client for a workspace's online or batch endpoints.

    Raises:
        SetupError: no workspace is given, or azure-ai-ml is not installed.
    """
    from llama_endpoints.endpoints.client import EndpointKind, EndpointsClient

    return EndpointsClient.of(
        chosen(subscription, group, name), EndpointKind.BATCH if batch else EndpointKind.ONLINE
    )
