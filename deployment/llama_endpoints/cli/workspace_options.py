"""Options that select the workspace, named as in `az ml`, and the client for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import click

from llama_endpoints.azure import workspace
from llama_endpoints.azure.workspace import Workspace

if TYPE_CHECKING:
    from llama_endpoints.endpoints.client import EndpointsClient

_Command = TypeVar("_Command", bound=Callable[..., None])


def workspace_options(command: _Command) -> _Command:
    """Add `--workspace-name`, `--resource-group` and `--subscription`."""
    for option in (
        click.option("--subscription", help="Subscription id. Default: az's."),
        click.option("--resource-group", "-g", "group", help="Resource group of the workspace. Default: az's."),
        click.option(
            "--workspace-name",
            "-w",
            "name",
            help="Azure ML workspace. Default: the job's, config.json's or az's.",
        ),
    ):
        command = option(command)
    return command


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
