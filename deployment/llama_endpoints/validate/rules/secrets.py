"""Keys and tokens that stand in a file, also in its comments. What is found is never shown."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from llama_endpoints.validate.document import Document, Place, dotted
from llama_endpoints.validate.findings import Finding, Rule

_PATTERNS: Final[Mapping[str, re.Pattern[str]]] = {
    "a token of Hugging Face": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "the key of a storage account": re.compile(r"\bAccountKey\s*=\s*[A-Za-z0-9+/]{16,}"),
    "a shared access key": re.compile(r"\bSharedAccess(?:Key|Signature)\s*=\s*\S{8,}"),
    "the signature of a shared access URL": re.compile(r"[?&;]sig=[A-Za-z0-9%+/_-]{16,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a token of GitHub": re.compile(r"\bgh[oprsu]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"),
    "a key of OpenAI's form": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "an access key of AWS": re.compile(r"\bA(?:KI|SI)A[A-Z0-9]{16}\b"),
    "a JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
}
_NAMED: Final = re.compile(
    r"""(?ix)^\s*-?\s*["']?\w*(?:password|secret|api_?keys?|access_?key|auth_?token|_token)["']?\s*:\s*
        (?!["']?\s*(?:$|\#|true\b|false\b|null\b|~|\$\{\{))["']?(?![<*]|\{\{|x+["']?\s*$)\S{4,}"""
)
"""A value behind a name that sounds like a secret's; no placeholder."""
_NAMED_KIND: Final = "a password or a key"
_ADVICE: Final = "Azure and everybody who reads the file would have it. Take it out, make a new one, and keep that in a key vault."


def leaks(document: Document) -> Iterator[Finding]:
    """A finding for each line that holds a secret; one that only its name gives away is a warning."""
    for number, line in enumerate(document.text.splitlines(), start=1):
        kind = next((kind for kind, pattern in _PATTERNS.items() if pattern.search(line)), None)
        named = kind is None and _NAMED.search(line) is not None
        if kind or named:
            rule = Rule.PASSWORD if named else Rule.SECRET
            yield Finding(
                document.path,
                number,
                dotted(_place(document, number)),
                rule,
                f"holds {kind or _NAMED_KIND}. {_ADVICE}",
            )


def masked(text: str) -> str:
    """A message without what looks like a secret: a value may go over several lines."""
    for pattern in (*_PATTERNS.values(), _NAMED):
        text = pattern.sub("***", text)
    return text


def _place(document: Document, line: int) -> Place:
    """The innermost value that begins in a line."""
    return max((place for place, at in document.lines.items() if at == line and place), key=len, default=())
