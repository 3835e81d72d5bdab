"""The generated parts of docs/ (settings, commands, parameters, errors, metrics, plans), azmlinfsrv's descriptions of `/score`, Grafana's dashboard, Azure's workbook.

python -m llama_endpoints.devtools.reference            write them
python -m llama_endpoints.devtools.reference --check    exit 1 where a file is out of date
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from llama_endpoints.devtools import planning_page
from llama_endpoints.devtools.blocks import fill
from llama_endpoints.devtools.command_reference import commands
from llama_endpoints.devtools.grafana import dashboard
from llama_endpoints.devtools.http_reference import errors, metrics, parameters
from llama_endpoints.devtools.settings_reference import settings
from llama_endpoints.devtools.workbook import template
from llama_serving.contract.json_lines import json_document
from llama_serving.contract.openapi import openapi, swagger

ROOT: Final = Path(__file__).resolve().parents[3]
DOCS: Final = ROOT / "docs"
MONITORING: Final = ROOT / "monitoring"
PAGES: Final[Mapping[str, Callable[[], Mapping[str, str]]]] = {
    "command-line.md": commands,
    "configuration.md": settings,
    "http-api.md": lambda: {**parameters(), **errors()},
    "operations.md": metrics,
    "planning.md": planning_page.tables,
}
"""Each page, and what generates its blocks by name."""
DESCRIPTIONS: Final[Mapping[str, Callable[[], Mapping[str, object]]]] = {
    "swagger.json": swagger,
    "swagger3.1.json": openapi,
}
"""Files in score/; azmlinfsrv looks for these names."""


def files() -> Mapping[Path, str]:
    """Return the text of each file as it should be, given the committed pages."""
    pages = {
        DOCS / name: fill((DOCS / name).read_text(encoding="utf-8"), make()) for name, make in PAGES.items()
    }
    return pages | {
        MONITORING / "grafana-dashboard.json": json_document(dashboard(), indent=1),
        MONITORING / "azure-workbook.json": json_document(template(), indent=1),
        **{ROOT / "score" / name: json_document(make(), indent=1) for name, make in DESCRIPTIONS.items()},
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where a file is out of date.")
def main(*, check: bool) -> None:
    """Write the generated files."""
    stale = {path: text for path, text in files().items() if path.read_text(encoding="utf-8") != text}
    if check and stale:
        names = ", ".join(path.name for path in stale)
        click.echo(f"Out of date: {names}. Run python -m llama_endpoints.devtools.reference.", err=True)
        sys.exit(1)
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
