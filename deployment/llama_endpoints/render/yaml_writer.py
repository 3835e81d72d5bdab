"""Write plain values as YAML with notes as comments."""

import textwrap
from collections.abc import Iterator
from typing import Any, Final

import yaml

from llama_endpoints.render.spec import RenderedFile

_WIDTH: Final = 112


def dump(spec: RenderedFile) -> str:
    """Return YAML in the order of the values, with the notes as comments above their keys."""
    text = yaml.safe_dump(dict(spec.values), sort_keys=False, allow_unicode=True, width=_WIDTH)
    lines = text.splitlines()
    marks = dict(_marks(yaml.compose(text, Loader=yaml.SafeLoader), ""))
    above = {marks[path]: note for path, note in spec.notes.items() if path}
    made = list[str]()
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if number in above:
            made += [""] * (indent == 0 and number > 1)
            made += _comment(above[number], indent)
        made.append(line)
    if "" in spec.notes:
        made += _comment(spec.notes[""], 0)
    return "\n".join(made) + "\n"


def _comment(note: str, indent: int) -> list[str]:
    margin = " " * indent + "# "
    return textwrap.wrap(note, _WIDTH, initial_indent=margin, subsequent_indent=margin, break_long_words=False)


def _marks(node: Any, above: str) -> Iterator[tuple[str, int]]:
    """Yield the line of each key, by its dotted path."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        inner = f"{above}.{key.value}".removeprefix(".")
        yield inner, key.start_mark.line
        yield from _marks(value, inner)
