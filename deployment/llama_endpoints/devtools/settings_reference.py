"""The table of settings, as docs/configuration.md shows it: names, meanings, allowed values and defaults from the code."""

import inspect
import re
from dataclasses import MISSING, fields
from typing import Any

from llama_endpoints.devtools.blocks import table
from llama_serving.errors import SetupError
from llama_serving.settings import Settings


def settings() -> dict[str, str]:
    """Return the block `settings`: a row for each field of `Settings`."""
    meanings = _meanings()
    rows = [
        [f"`LLAMA_{one.name.upper()}`", meanings[one.name], _allowed(one.name), _shown(one.default)]
        for one in fields(Settings)
    ]
    return {"settings": table([["name", "meaning", "allowed", "default"], *rows])}


def _meanings() -> dict[str, str]:
    """The `Attributes` of the class's docstring, one line each."""
    text = inspect.cleandoc(Settings.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", text, re.MULTILINE)
    return {name: _one_line(meaning) for name, meaning in found}


def _one_line(meaning: str) -> str:
    """The meaning for readers who set a variable: what is None in Python is unset there."""
    text = " ".join(meaning.split()).rstrip(".").replace("|", "\\|")
    return re.sub(r"\bNone is\b", "unset:", text)


def _allowed(name: str) -> str:
    """What the error message for an unusable value says is allowed; empty where any text is."""
    try:
        Settings.from_environment({f"LLAMA_{name.upper()}": "-"})
    except SetupError as error:
        found = re.search(r"must be (.*?)\.?$", str(error))
        return found[1] if found else ""
    return ""


def _shown(default: Any) -> str:
    if default is None or default is MISSING or default == ():
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
