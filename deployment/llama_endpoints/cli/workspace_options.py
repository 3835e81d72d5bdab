"""The options that say which workspace, as `az ml` calls them; and the client for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import click

from llama_endpoints.azure import workspace
from llama_endpoints.azure.workspace import Workspace

if TYPE_CHECKING:
    from llama_endpoints.endpoints.client import Client

_Command = TypeVar("_Command", bound=Callable[..., None])


def where_options(command: _Command) -> _Command:
    """`--workspace-name`, `--resource-group` and `--subscription`."""
    for option in (
        click.option("--subscription", help="Its id; what `az` is set to by default."),
        click.option("--resource-group", "-g", "group", help="Of the workspace; likewise."),
        click.option(
            "--workspace-name", "-w", "name", help="Of Azure ML; a job's own, config.json's or az's default."
        ),
    ):
        command = option(command)
    return command


def chosen(subscription: str | None, group: str | None, name: str | None) -> Workspace:
    """What was given, and the default workspace's for what was not.

    Raises:
        SetupError: neither says it.
    """
    if subscription and group and name:
        return Workspace(subscription, group, name)
    given = {"subscription": subscription, "group": group, "name": name}
    return replace(workspace.default(), **{key: value for key, value in given.items() if value})


def client_of(
    subscription: str | None, group: str | None, name: str | None, *, batch: bool = False
) -> "Client":
    """Of a workspace's online endpoints, or of its batch endpoints.

    Raises:
        SetupError: no workspace is said, or azure-ai-ml is not there.
    """
    from llama_endpoints.endpoints.client import Client, EndpointKind

    return Client.of(chosen(subscription, group, name), EndpointKind.BATCH if batch else EndpointKind.ONLINE)
