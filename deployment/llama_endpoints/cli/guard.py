"""`llama-endpoints guard`: what guards need before a service starts."""

from pathlib import Path
from typing import TextIO

import click


@click.group()
def guard() -> None:
    """Prepare and try the guards of LLAMA_GUARDS."""


@guard.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
def index(*, folder: Path, output: Path) -> None:
    """Index the text files below FOLDER, for a guard of the type overlap.

    The index has hashes of lines, and names and licences of files. It has no text.
    """
    from llama_serving.errors import SetupError
    from llama_serving.service.guards.overlap.build import build

    try:
        built = build(folder, output)
    except OSError as error:
        raise SetupError(f"{error.filename or output} can't be read or written ({error.strerror}).") from error
    left_out = f", {built.left_out} left out (binary, or too large)" if built.left_out else ""
    click.echo(f"{output}: {built.files} files{left_out}, {built.lines} lines, {output.stat().st_size} bytes")


@guard.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("text", type=click.File(encoding="utf-8", errors="replace"))
@click.option(
    "--stage", type=click.Choice(("prompt", "text")), default="text", help="What the text stands for."
)
def check(*, file: Path, text: TextIO, stage: str) -> None:
    """Check TEXT (a file, or - for stdin) with the guards of FILE. Exit code 1 where one blocks, 2 where one fails."""
    from llama_serving.contract.content_filter import blocks, results
    from llama_serving.contract.json_lines import json_line
    from llama_serving.errors import ServingError, SetupError
    from llama_serving.service.guards import configuration
    from llama_serving.service.guards.guard import Passage, Stage

    guards = configuration.load(str(file))
    try:
        (found,) = guards.check([Passage(Stage(stage), text.read())])
    except ServingError as error:
        raise SetupError(error.message) from error
    click.echo(json_line(results(found) or {"content_filter_results": {}}))
    if blocks(found):
        raise SystemExit(1)
