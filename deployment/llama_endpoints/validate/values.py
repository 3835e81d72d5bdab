"""How azure-ai-ml reads values, and how messages show them."""

import math
import re
from typing import Any, Final

MOST: Final = 2**31 - 1
_DIGITS: Final = re.compile(r"\s*[+-]?\d{1,18}\s*")


def read_by_azure(value: Any) -> int | None:
    """Return the integer that azure-ai-ml makes of a value; None if it refuses it."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and math.isfinite(value):
        return int(value)
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    return value if isinstance(value, int) else None


def within(value: Any, low: int, high: int) -> bool:
    """Whether it is an integer (to azure-ai-ml, true is 1 and 1.7 is 1) from low to high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def shown(value: Any) -> str:
    """Format a value for a message: shortened, strings quoted."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def article(value: Any) -> str:
    """Return the YAML type of a value, in words."""
    words = {
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        list: "a list",
        dict: "a mapping",
    }
    return words.get(type(value), "a date")
