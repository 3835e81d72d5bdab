"""YAML with lines: every value has the line that a person would look at."""

from pathlib import Path

import pytest

from llama_endpoints.validate.document import Document, dotted, read
from llama_endpoints.validate.spec_files import around

TEXT = """\
# a comment
first: &first
  one: 1
  two: 2
second:
  <<: *first
  two: 3
third: [a, {four: "4"}]
fourth:
  <<: [{five: 5, one: 6}, *first]
fifth: >-
  many
  lines
sixth:
  - seven: 7
  -
    - eight
"""


@pytest.fixture
def document(tmp_path: Path) -> Document:
    path = tmp_path / "a.yml"
    path.write_text(TEXT, encoding="utf-8")
    document, findings = read(path)
    assert document is not None
    assert not findings
    return document


def test_values(document: Document) -> None:
    """As PyYAML and Azure's client read them, merges too."""
    assert document.root == {
        "first": {"one": 1, "two": 2},
        "second": {"one": 1, "two": 3},
        "third": ["a", {"four": "4"}],
        "fourth": {"five": 5, "one": 6, "two": 2},
        "fifth": "many lines",
        "sixth": [{"seven": 7}, ["eight"]],
    }


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ((), 1),
        (("first",), 2),
        (("first", "one"), 3),
        (("second", "one"), 3),
        (("second", "two"), 7),
        (("third", 0), 8),
        (("third", 1, "four"), 8),
        (("fourth", "five"), 10),
        (("fourth", "one"), 10),
        (("fourth", "two"), 4),
        (("fifth",), 11),
        (("sixth", 0), 15),
        (("sixth", 0, "seven"), 15),
        (("sixth", 1, 0), 17),
        (("sixth", 5, "nothing"), 14),
        (("nowhere", "at", "all"), 1),
    ],
)
def test_lines(document: Document, place: tuple[str | int, ...], line: int) -> None:
    assert document.line(place) == line


def test_what_is_not_there_is_none(document: Document) -> None:
    places = (("nowhere",), ("first", "one", "more"), ("third", 5), ("third", "x"), ("fifth", 0))
    assert [document.at(*place) for place in places] == [None] * 5
    assert document.at("third", 1, "four") == "4"


def test_a_place_in_words() -> None:
    assert dotted(("profiles", 0, "rules", 12, "name")) == "profiles[0].rules[12].name"
    assert dotted(()) == ""


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/p/yaml/online/a.yml", "/p"),
        ("/p/environments/online/environment.yml", "/p"),
        ("/p/yaml/q/yaml/a.yml", "/p/yaml/q"),
        ("/p/other/a.yml", "/p/other"),
    ],
)
def test_around(path: str, root: str) -> None:
    assert around(Path(path)) == Path(root)
