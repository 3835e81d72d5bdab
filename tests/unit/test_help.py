"""Help texts: what an option sets is named, with every value that it takes."""

import re
from collections.abc import Iterator

import click
import pytest

from deployment.cli import main
from llama_serving.errors import SetupError
from llama_serving.settings import DTYPES, ENGINES, Settings


def options(command: click.Command = main, path: str = "") -> Iterator[tuple[str, click.Option]]:
    """Every option of every command, with how it is written."""
    for one in command.params:
        if isinstance(one, click.Option):
            yield f"{path} {one.opts[-1]}".strip(), one
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from options(inner, f"{path} {name}".strip())


OPTIONS = dict(options())
SET = {
    name: found[1] for name, one in OPTIONS.items() if (found := re.match("LLAMA_([A-Z_]+):", one.help or ""))
}


def choices(setting: str) -> list[str]:
    """The values of a setting that has some; none of one that takes a number."""
    try:
        Settings.from_environment({f"LLAMA_{setting}": "no such value"})
    except SetupError as error:
        found = re.search(r"must be one of (.*)\.$", str(error))
        return found[1].split(", ") if found else []
    return []


def test_the_options_that_set_something_are_found() -> None:
    assert choices("ENGINE") == list(ENGINES)
    assert choices("DTYPE") == list(DTYPES)
    assert {"serve --engine", "score --engine", "batch --engine", "batch --dtype"} <= SET.keys()


@pytest.mark.parametrize("name", SET)
def test_help_names_every_value_of_the_setting(name: str) -> None:
    text = OPTIONS[name].help or ""
    values = choices(SET[name])
    assert not values or text == f"LLAMA_{SET[name]}: {', '.join(values)}."


@pytest.mark.parametrize("name", [name for name, one in OPTIONS.items() if isinstance(one.type, click.Choice)])
def test_help_shows_every_choice(name: str) -> None:
    one = OPTIONS[name]
    with click.Context(click.Command("x", params=[one]), max_content_width=1000) as context:
        text, _ = one.get_help_record(context) or ("", "")
    assert isinstance(one.type, click.Choice)
    for value in one.type.choices:
        assert re.search(rf"\b{re.escape(str(value))}\b", f"{text} {one.help}")


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_says_what_it_does(name: str) -> None:
    assert (OPTIONS[name].help or "").strip().endswith(".")
