"""Words in the tags of an Azure resource. A list that is longer than one tag may be goes into several: `was`, `was-2`, `was-3`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Final

LONGEST: Final = 250
"""Characters of a tag's value; Azure takes 256."""


def spread(name: str, words: Iterable[str]) -> Mapping[str, str]:
    """Tags that hold these words, in order."""
    values = [""]
    for word in words:
        joined = f"{values[-1]} {word}".lstrip()
        if len(joined) <= LONGEST:
            values[-1] = joined
        else:
            values.append(word)
    return {_numbered(name, number): value for number, value in enumerate(values, start=1)}


def gathered(tags: Mapping[str, str], name: str) -> Sequence[str] | None:
    """The words that `spread` has put into tags; None where there is no such tag."""
    if name not in tags:
        return None
    words: list[str] = []
    for number in count(1):
        if (value := tags.get(_numbered(name, number))) is None:
            return words
        words += value.split()
    raise AssertionError


def without(tags: Mapping[str, str], names: Iterable[str]) -> Mapping[str, str]:
    """The others: none of these names, with or without a number."""
    ours = re.compile(f"({'|'.join(map(re.escape, names))})(-[0-9]+)?")
    return {name: value for name, value in tags.items() if not ours.fullmatch(name)}


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"
