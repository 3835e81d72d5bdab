"""The help of every command, as docs/command-line.md shows it."""

from collections.abc import Iterator
from typing import Final

import click

from llama_endpoints.cli.main import main

WIDTH: Final = 100
"""Columns of a help text, whatever the terminal."""


def commands() -> dict[str, str]:
    """Return the block `commands`: a heading and the help text for each command, groups before their commands."""
    settings = {**main.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    root = click.Context(main, info_name="llama-endpoints", **settings)
    return {"commands": "\n".join(_sections(root))}


def _sections(context: click.Context) -> Iterator[str]:
    command = context.command
    if context.parent is not None:
        yield f"## {context.command_path.removeprefix('llama-endpoints ')}\n\n```text\n{_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _sections(click.Context(command.commands[name], info_name=name, parent=context))


def _help(context: click.Context) -> str:
    return "\n".join(line.rstrip() for line in context.get_help().splitlines())
