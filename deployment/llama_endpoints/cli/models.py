"""`llama-endpoints models`: list the catalog."""

from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from llama_serving.catalog import ModelVariant

_GIB: Final = 1 << 30


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, with sources.")
def models(*, as_json: bool) -> None:
    """List the models of the catalog."""
    from llama_endpoints.cli.tables import table
    from llama_serving.catalog import CATALOG
    from llama_serving.contract.json_lines import json_line

    if as_json:
        for row in CATALOG.values():
            click.echo(json_line(row.to_dict()))
        return
    header = ("NAME", "BF16 GiB", "CONTEXT", "UP TO", "DIALOG", "INFILL")
    click.echo(
        table([header, *(_model_line(row) for row in CATALOG.values())], left=("NAME", "DIALOG", "INFILL"))
    )


def _model_line(row: "ModelVariant") -> tuple[str, ...]:
    return (
        row.name,
        f"{row.shape.weight_bytes() / _GIB:.2f}",
        f"{row.trained_positions.value:,}",
        f"{row.max_context.value:,}",
        row.dialog or "-",
        "yes" if row.infill.value else "-",
    )
