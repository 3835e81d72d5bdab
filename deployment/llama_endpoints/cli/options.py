"""Options that several commands have, and what they mean."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

import click

from llama_serving.contract.json_lines import json_line
from llama_serving.errors import ServingError

if TYPE_CHECKING:
    from llama_serving.settings import Settings


DTYPES: Final = ("float32", "bfloat16", "float16")
Command = Callable[..., None]


def options(*added: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator; `--help` shows them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(added):
            command = option(command)
        return command

    return decorate


# What describes a checkpoint that the catalog does not have.
format_options = options(
    click.option("--dialog", type=click.Choice(["inst", "source", "none"]),
                 help="Outside the catalog: the dialog format it was tuned on."),
    click.option("--infill", metavar="PRE,SUF,MID,EOT|none",
                 help="Outside the catalog: its infilling ids, such as 32007,32008,32009,32010."),
    click.option("--step-id", type=int, help="Outside the catalog: the id of <step>, for --dialog source."),
)  # fmt: skip
default_options = options(
    click.option("--temperature", type=click.FloatRange(0, 2),
                 help="Outside the catalog: what it samples with by default; 0.2 if not given."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True),
                 help="Outside the catalog: likewise; 0.9 if not given."),
    click.option("--max-context", type=click.IntRange(16),
                 help="Outside the catalog: how far it may read; its config's positions by default."),
)  # fmt: skip


def warn(warnings: Sequence[str]) -> None:
    """Print warnings on standard error."""
    for warning in warnings:
        click.echo(f"Warning: {warning}.", err=True)


def settings_of(flags: dict[str, str | None]) -> "Settings":
    """The environment's settings, under the flags of a command.

    Raises:
        SetupError: a value can't be used.
    """
    from llama_serving.settings import Settings

    given = {f"LLAMA_{name.upper()}": value for name, value in flags.items() if value is not None}
    return Settings.from_environment({**os.environ, **given})


def deadline_of(settings: "Settings") -> float | None:
    """When a request that begins now must have ended, by the monotonic clock; None without a limit."""
    import time

    return None if settings.deadline_s is None else time.monotonic() + settings.deadline_s


def refuse(error: ServingError) -> NoReturn:
    """Print the error object on standard error and end with exit code 1."""
    stream: TextIO = sys.stderr
    click.echo(json_line(error.body()), file=stream)
    raise SystemExit(1)
