"""Options shared by several commands."""

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from llama_serving.contract.json_lines import json_line
from llama_serving.errors import ServingError
from llama_serving.settings import DTYPES as SETTING_DTYPES
from llama_serving.settings import ENGINES

if TYPE_CHECKING:
    from llama_serving.settings import Settings


DTYPES: Final = ("float32", "bfloat16", "float16")
Command = Callable[..., None]


class FiniteRange(click.FloatRange):
    """A number within a range. Click takes NaN for any range, since it is neither less nor more than the ends."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


def options(*added: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine several options into one decorator. `--help` shows them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(added):
            command = option(command)
        return command

    return decorate


model_option = click.option(
    "--model", required=True, help="Folder of a packaged model, an azureml: URI, or nano."
)
request_option = click.option(
    "--request", required=True, type=click.File("rb"), help="File with one JSON body, or - for standard input."
)
deadline_option = click.option(
    "--deadline", "deadline_s", help="LLAMA_DEADLINE_S: time limit of a request in seconds."
)
infill_order_option = click.option(
    "--infill-order",
    type=click.Choice(["psm", "spm"]),
    help="Order of infilling prompts. Default: the catalog's: psm; nano spm.",
)

# Options of the commands that load a model. Each sets the variable named in its help.
setting_options = options(
    click.option("--context", help="LLAMA_CONTEXT: tokens of prompt and completion."),
    click.option("--dtype", help=f"LLAMA_DTYPE: {', '.join(SETTING_DTYPES)}."),
    click.option("--engine", help=f"LLAMA_ENGINE: {', '.join(ENGINES)}."),
    click.option("--threads", help="LLAMA_THREADS: number of torch threads."),
)

# Options that describe a checkpoint outside the catalog.
format_options = options(
    click.option("--dialog", type=click.Choice(["inst", "source", "none"]),
                 help="Outside the catalog: the dialog format the model was tuned on."),
    click.option("--infill", metavar="PRE,SUF,MID,EOT|none",
                 help="Outside the catalog: infilling ids, such as 32007,32008,32009,32010."),
    click.option("--step-id", type=int, help="Outside the catalog: the id of <step>, for --dialog source."),
)  # fmt: skip
default_options = options(
    click.option("--temperature", type=FiniteRange(0, 2),
                 help="Outside the catalog: default temperature. Default: 0.2."),
    click.option("--top-p", type=FiniteRange(0, 1, min_open=True),
                 help="Outside the catalog: default top_p. Default: 0.9."),
    click.option("--max-context", type=click.IntRange(16),
                 help="Outside the catalog: longest context. Default: the config's positions."),
)  # fmt: skip


def warn(warnings: Sequence[str]) -> None:
    """Print warnings to standard error."""
    for warning in warnings:
        click.echo(f"Warning: {warning}.", err=True)


def settings_of(flags: dict[str, str | None]) -> "Settings":
    """Return the environment's settings, overridden by a command's flags.

    Raises:
        SetupError: a value is invalid.
        UsageError: a flag is empty, as that of a shell's variable that is not set; the environment's value would be used for it.
    """
    from llama_serving.settings import Settings

    for name, value in flags.items():
        if value is not None and not value.strip():
            flag = f"--{name.removesuffix('_s').replace('_', '-')}"
            raise click.UsageError(f"{flag} is empty. Give it a value, or leave it out.")
    given = {f"LLAMA_{name.upper()}": value for name, value in flags.items() if value is not None}
    return Settings.from_environment({**os.environ, **given})


def refuse(error: ServingError) -> NoReturn:
    """Print the error object to standard error and exit with code 1."""
    click.echo(json_line(error.body()), err=True)
    raise SystemExit(1)
