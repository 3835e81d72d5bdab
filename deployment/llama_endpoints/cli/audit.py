"""`llama-endpoints audit verify`: check that an audit is what the server wrote."""

from pathlib import Path

import click


@click.group()
def audit() -> None:
    """Check audits, which LLAMA_AUDIT has the server write."""


@audit.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--contains", multiple=True, metavar="HASH",
    help="A hash that was noted earlier, such as the last one: it must be among the lines. Repeatable.",
)  # fmt: skip
def verify(*, files: tuple[Path, ...], contains: tuple[str, ...]) -> None:
    """Check the chain of hashes of an audit's files, in any order.

    A line that was changed, removed, added or moved breaks the chain: exit code 1, and the first such line is named. Lines
    removed from the end, or a chain that was written anew, only show if a hash of them was noted elsewhere: give it with
    --contains. The server logs the last hash when it starts and stops.
    """
    from llama_serving.server.accounts.chain import BrokenChain, Link, links, torn

    first, head, missing = 0, Link(), set(contains)
    try:
        for head in links({file.resolve() for file in files}):
            first = first or head.line
            missing.discard(head.hash)
    except BrokenChain as error:
        raise click.ClickException(str(error)) from error
    if missing:
        raise click.ClickException(
            f"No line has the hash {min(missing)}: lines were removed, or all were written anew."
        )
    for path in filter(torn, files):
        click.echo(f"The last line of {path} is incomplete, as a killed server leaves it, and is not counted.")
    if not first:
        click.echo("There are no lines.")
        return
    if first > 1:
        click.echo(f"Line {first} is the first one given; {first - 1} earlier lines are not checked.")
    click.echo(f"Lines {first} to {head.line} are as they were written. The last hash is {head.hash}.")
