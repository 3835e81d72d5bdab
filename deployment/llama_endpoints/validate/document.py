"""A YAML file as plain values with line numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml
from yaml.constructor import SafeConstructor

from llama_endpoints.validate.findings import Finding, Rule

Place = tuple[str | int, ...]
"""The path of a value: keys and indices from the root."""

MOST_BYTES: Final = 1 << 20
MOST_NODES: Final = 10_000
"""After expanding aliases: a few lines of them can stand for billions of values."""
_MERGE: Final = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Document:
    """One file's mapping.

    Attributes:
        path: the file's path.
        text: the file's text.
        root: the mapping as plain values.
        lines: the line of every value, from 1. A mapping's value has its key's line.
    """

    path: Path
    text: str
    root: Mapping[str, Any]
    lines: Mapping[Place, int]

    def at(self, *place: str | int) -> Any:
        """Return the value at a place, or None."""
        value: Any = self.root
        for step in place:
            if isinstance(value, Mapping):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value

    def line(self, place: Place) -> int:
        """Return the line of a value; if it does not exist, the line of the mapping it belongs in."""
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]


class _Unusable(Exception):
    """The file is not a usable document. The finding says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def read(path: Path) -> tuple[Document | None, list[Finding]]:
    """Return a file's document, if it can be parsed, and the findings about its YAML."""
    try:
        text = _text(path)
        return _Parser(path, text).document(_node(path, text))
    except _Unusable as unusable:
        return None, [unusable.finding]


def dotted(place: Place) -> str:
    """Format a place: `("profiles", 0, "name")` -> `profiles[0].name`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def _refuse(path: Path, line: int, rule: Rule, message: str) -> NoReturn:
    raise _Unusable(Finding(path, line, "", rule, message))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        _refuse(path, 1, Rule.FILE, f"cannot be read: {error.strerror}. Pass an existing YAML file or folder.")
    if len(raw) > MOST_BYTES:
        _refuse(
            path, 1, Rule.FILE, f"has more than {MOST_BYTES:,} bytes and is too large for an Azure ML file."
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        _refuse(path, line, Rule.FILE, "is not UTF-8. Save it in UTF-8.")


def _node(path: Path, text: str) -> yaml.MappingNode:
    try:
        nodes = list(islice(yaml.compose_all(text, yaml.SafeLoader), 2))
        expanded = _expanded(nodes[0], {}) if nodes else 0
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        tab = " Indent YAML with spaces, not tabs." if "'\\t'" in (error.problem or "") else ""
        _refuse(path, line, Rule.YAML, f"is not YAML: {error.problem or error.context}.{tab}")
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        _refuse(
            path, line, Rule.YAML, f"is not YAML: it contains the character #x{error.character:04x}. Remove it."
        )
    except RecursionError:
        _refuse(path, 1, Rule.YAML, "is nested too deeply. Flatten it.")
    if len(nodes) > 1:
        line = nodes[1].start_mark.line + 1
        _refuse(
            path,
            line,
            Rule.SHAPE,
            "contains several documents, and Azure reads one. Move the others to separate files.",
        )
    if expanded > MOST_NODES:
        _refuse(
            path,
            1,
            Rule.YAML,
            f"expands to more than {MOST_NODES:,} values by its aliases. Write them out.",
        )
    if not nodes or (isinstance(nodes[0], yaml.ScalarNode) and not nodes[0].value):
        _refuse(path, 1, Rule.YAML, "is empty. It must be a mapping that begins with $schema.")
    if not isinstance(nodes[0], yaml.MappingNode):
        line = nodes[0].start_mark.line + 1
        _refuse(
            path, line, Rule.SHAPE, "is not a mapping. It must be `key: value` lines that begin with $schema."
        )
    return nodes[0]


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node expands to; too many if it contains itself."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1
        known[id(node)] = 1 + sum(_expanded(inner, known) for inner in _inner(node))
    return known[id(node)]


def _inner(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


@dataclass(slots=True)
class _Parser:
    """Converts nodes to values, and records lines and findings."""

    path: Path
    text: str
    lines: dict[Place, int] = field(default_factory=lambda: {(): 1})
    findings: list[Finding] = field(default_factory=list)

    def document(self, node: yaml.MappingNode) -> tuple[Document, list[Finding]]:
        root = self._mapping(node, ())
        return Document(self.path, self.text, root, self.lines), self.findings

    def _value(self, node: yaml.Node, place: Place) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return list(self._items(node, place))
        return self._scalar(node, place)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merged.append(value)
                continue
            name = self._key(key, place)
            if name in values:
                first = self.lines[(*place, name)]
                self._find(
                    key, (*place, name), Rule.DUPLICATE_KEY,
                    f"is defined twice (first in line {first}); the last one wins. Keep one.",
                )  # fmt: skip
            self.lines[(*place, name)] = key.start_mark.line + 1
            values[name] = self._value(value, (*place, name))
        for other in merged:
            values = {**self._merged(other, place), **values}
        return values

    def _merged(self, node: yaml.Node, place: Place) -> dict[str, Any]:
        """Return what `<<` merges: a mapping, or a list of mappings of which the first wins."""
        others = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values: dict[str, Any] = {}
        for other in others:
            if not isinstance(other, yaml.MappingNode):
                self._find(node, place, Rule.KEY, "`<<` must refer to a mapping. Write its keys out.")
                continue
            known = dict(self.lines)
            values = {**self._mapping(other, place), **values}
            self.lines.update(known)
        return values

    def _items(self, node: yaml.SequenceNode, place: Place) -> Iterator[Any]:
        for index, item in enumerate(node.value):
            self.lines[(*place, index)] = item.start_mark.line + 1
            yield self._value(item, (*place, index))

    def _key(self, node: yaml.Node, place: Place) -> str:
        value = self._scalar(node, place) if isinstance(node, yaml.ScalarNode) else None
        if isinstance(value, str):
            return value
        name = str(node.value) if isinstance(node, yaml.ScalarNode) else "?"
        self._find(
            node, (*place, name), Rule.KEY,
            "is not a string in YAML (but a number, a boolean or a list). Quote the key.",
        )  # fmt: skip
        return name

    def _scalar(self, node: yaml.Node, place: Place) -> Any:
        try:
            return SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date such as 2024-99-99
            said = getattr(error, "problem", None) or error
            self._find(node, place, Rule.YAML, f"cannot be read: {said}. Quote it.")
            return None

    def _find(self, node: yaml.Node, place: Place, rule: Rule, message: str) -> None:
        self.findings.append(Finding(self.path, node.start_mark.line + 1, dotted(place), rule, message))
