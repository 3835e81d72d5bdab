"""The generated parts of docs/: settings, commands, parameters, errors, metrics, plans.

python -m llama_endpoints.devtools.reference            write them
python -m llama_endpoints.devtools.reference --check    exit 1 where a page is out of date
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from llama_endpoints.devtools import planning_page
from llama_endpoints.devtools.blocks import fill
from llama_endpoints.devtools.command_reference import commands
from llama_endpoints.devtools.http_reference import errors, metrics, parameters
from llama_endpoints.devtools.settings_reference import settings

DOCS: Final = Path(__file__).resolve().parents[3] / "docs"
PAGES: Final[Mapping[str, Callable[[], Mapping[str, str]]]] = {
    "command-line.md": commands,
    "configuration.md": settings,
    "http-api.md": lambda: {**parameters(), **errors()},
    "operations.md": metrics,
    "planning.md": planning_page.tables,
}
"""Each page, and what generates its blocks by name."""


def current(name: str, text: str) -> str:
    """Return the page `name` as it should be, given its committed text."""
    return fill(text, PAGES[name]())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where a page is out of date.")
def main(*, check: bool) -> None:
    """Write the generated parts of docs/."""
    stale = []
    for name in PAGES:
        path = DOCS / name
        text = path.read_text(encoding="utf-8")
        new = current(name, text)
        if new != text and check:
            stale.append(name)
        elif new != text:
            path.write_text(new, encoding="utf-8")
    if stale:
        click.echo(
            f"Out of date: {', '.join(stale)}. Run python -m llama_endpoints.devtools.reference.", err=True
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
