"""`llama-endpoints usage`: sum up audits."""

import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from llama_serving.server.accounts.usage import Counts

_GROUPS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "key": lambda record: str(record["key"]),
    "model": lambda record: str(record["model"] or "-"),
    "day": lambda record: str(record["time"])[:10],
}


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--by", type=click.Choice(list(_GROUPS)), default="key", help="What to sum up by; days are in UTC."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def usage(*, files: tuple[Path, ...], by: str, as_json: bool, as_csv: bool) -> None:
    """Sum up the requests and tokens of audits, also of several servers.

    Tokens are those that the engine read and generated, whether or not the client stayed until the end. Each line is checked
    against its own hash; `audit verify` checks that none is missing.
    """
    from llama_endpoints.cli.tables import table
    from llama_serving.contract.json_lines import json_line

    if as_json and as_csv:
        raise click.UsageError("--json and --csv can't be given together.")
    rows = dict(sorted(_sums(files, by).items()))
    if as_json:
        for name, one in rows.items():
            click.echo(json_line({by: name, **asdict(one)}))
        return
    cells = [[name, *map(str, asdict(one).values())] for name, one in rows.items()]
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([[by, *_columns()], *cells])
        return
    header = (by.upper(), *(name.replace("_", " ").upper() for name in _columns()))
    click.echo(table([header, *cells], left=(by.upper(),)))


def _columns() -> Iterator[str]:
    from llama_serving.server.accounts.usage import Counts

    return iter(asdict(Counts()))


def _sums(files: tuple[Path, ...], by: str) -> dict[str, "Counts"]:
    from llama_serving.server.accounts.chain import BrokenChain, records
    from llama_serving.server.accounts.usage import Counts

    sums: dict[str, Counts] = {}
    try:
        for path in {file.resolve() for file in files}:
            for number, record, _ in records(path):
                try:
                    sums.setdefault(_GROUPS[by](record), Counts()).add(record)
                except (KeyError, TypeError):
                    raise BrokenChain(path, number, "it is no record of a request") from None
    except BrokenChain as error:
        raise click.ClickException(str(error)) from error
    return sums
