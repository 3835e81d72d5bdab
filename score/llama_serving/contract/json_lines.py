"""JSON on one line, for events, JSONL files, logs and command output.

Readers disagree on line breaks. `str.splitlines`, and so `iter_lines` of httpx and requests, also splits at U+0085, U+2028
and U+2029, which JSON may contain unescaped. These are escaped here; JSON escapes the control characters anyway.
"""

import json
from typing import Any, Final

_BREAKS: Final = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def json_line(value: Any) -> str:
    """Return `value` as one line of JSON for every reader, non-ASCII text unescaped."""
    return json.dumps(value, ensure_ascii=False).translate(_BREAKS)


def json_document(value: Any, *, indent: int) -> str:
    """Return `value` as indented JSON whose lines are the same for every reader."""
    return json.dumps(value, ensure_ascii=False, indent=indent).translate(_BREAKS) + "\n"
