"""JSON that is read line by line: events, JSONL, logs, what a command prints.

Readers differ in what a line is. `str.splitlines`, and so `iter_lines` of httpx and requests, also cut at U+0085, U+2028 and
U+2029, which JSON may hold as they are; the control characters that they cut at JSON escapes anyway.
"""

import json
from typing import Any, Final

_BREAKS: Final = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def json_line(value: Any) -> str:
    """`value` as one line of JSON for every reader; all other text as it is."""
    return json.dumps(value, ensure_ascii=False).translate(_BREAKS)


def json_document(value: Any, *, indent: int) -> str:
    """`value` as JSON for people to read: the lines of it are the same for every reader."""
    return json.dumps(value, ensure_ascii=False, indent=indent).translate(_BREAKS) + "\n"
