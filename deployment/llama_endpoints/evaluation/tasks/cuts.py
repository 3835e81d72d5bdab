"""Cuts: what a model wrote -> the part that is its answer."""

import re
from collections.abc import Sequence
from typing import Final

_FENCE: Final = re.compile(r"^ {0,3}```[^\n`]*\n(.*?)(?:^ {0,3}```|\Z)", re.MULTILINE | re.DOTALL)
_ONE_SPACE: Final = re.compile(r"^ (?! )")


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first of some stop texts."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]


def first_fence(text: str, wanted: str = "") -> str:
    """Return the code of the first fenced block that has `wanted` in it, else of the first one, else the whole text.

    Answers of Llama-2's dialog format begin with one space, which is not theirs.
    """
    blocks: list[str] = _FENCE.findall(text)
    return next(
        (block for block in blocks if wanted in block), blocks[0] if blocks else _ONE_SPACE.sub("", text)
    )
