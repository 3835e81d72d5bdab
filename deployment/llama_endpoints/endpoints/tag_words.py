"""Lists of words in an Azure resource's tags. A list longer than one tag allows is split over several: `was`, `was-2`, `was-3`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Final

LONGEST: Final = 250
"""Characters of a tag's value; Azure allows 256."""


def spread(name: str, words: Iterable[str]) -> Mapping[str, str]:
    """Return tags that hold these words, in order."""
    values = [""]
    for word in words:
        joined = f"{values[-1]} {word}".lstrip()
        if len(joined) <= LONGEST:
            values[-1] = joined
        else:
            values.append(word)
    return {_numbered(name, number): value for number, value in enumerate(values, start=1)}


def gather(tags: Mapping[str, str], name: str) -> Sequence[str] | None:
    """Return the words that `spread` put into tags; None if there is no such tag."""
    if name not in tags:
        return None
    words: list[str] = []
    for number in count(1):
        if (value := tags.get(_numbered(name, number))) is None:
            return words
        words += value.split()
    raise AssertionError


def without(tags: Mapping[str, str], names: Iterable[str]) -> Mapping[str, str]:
    """Return the tags without these names, numbered or not."""
    ours = re.compile(f"({'|'.join(map(re.escape, names))})(-[0-9]+)?")
    return {name: value for name, value in tags.items() if not ours.fullmatch(name)}


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"
