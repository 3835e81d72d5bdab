"""Options of the commands that load a model. Each one sets the variable named in its help."""

from collections.abc import Callable
from typing import Final

import click

from llama_serving.settings import DTYPES, ENGINES

_Command = Callable[..., None]

_OPTIONS: Final = (
    click.option("--context", help="LLAMA_CONTEXT: tokens of prompt and completion."),
    click.option("--dtype", help=f"LLAMA_DTYPE: {', '.join(DTYPES)}."),
    click.option("--engine", help=f"LLAMA_ENGINE: {', '.join(ENGINES)}."),
    click.option("--threads", help="LLAMA_THREADS: number of torch threads."),
)


def setting_options(command: _Command) -> _Command:
    """Add these options to a command. It gets them as `context`, `dtype`, `engine` and `threads`, None if not given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
