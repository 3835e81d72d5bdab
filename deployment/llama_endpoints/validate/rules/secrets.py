"""Keys and tokens in a file, comments included. The text found is never shown."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from llama_endpoints.validate.document import Document, Place, dotted
from llama_endpoints.validate.findings import Finding, Rule

_PATTERNS: Final[Mapping[str, re.Pattern[str]]] = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "a storage account key": re.compile(r"\bAccountKey\s*=\s*[A-Za-z0-9+/]{16,}"),
    "a shared access key": re.compile(r"\bSharedAccess(?:Key|Signature)\s*=\s*\S{8,}"),
    "the signature of a shared access URL": re.compile(r"[?&;]sig=[A-Za-z0-9%+/_-]{16,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a GitHub token": re.compile(r"\bgh[oprsu]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"),
    "an OpenAI-style key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "an AWS access key": re.compile(r"\bA(?:KI|SI)A[A-Z0-9]{16}\b"),
    "a JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
}
_NAMED: Final = re.compile(
    r"""(?ix)^\s*-?\s*["']?\w*(?:password|secret|api_?keys?|access_?key|auth_?token|_token)["']?\s*:\s*
        (?!["']?\s*(?:$|\#|true\b|false\b|null\b|~|\$\{\{))["']?(?![<*]|\{\{|x+["']?\s*$)\S{4,}"""
)
"""A value, not a placeholder, under a name that suggests a secret."""
_NAMED_KIND: Final = "a password or a key"
_ADVICE: Final = "Azure and everybody who reads the file would have it. Remove it, rotate it, and keep the new one in a key vault."


def find_secrets(document: Document) -> Iterator[Finding]:
    """Yield a finding for each line with a secret. It is a warning if only the field's name suggests one."""
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
                f"contains {kind or _NAMED_KIND}. {_ADVICE}",
            )


def masked(text: str) -> str:
    """Mask what looks like a secret in a message; a value may span several lines."""
    for pattern in (*_PATTERNS.values(), _NAMED):
        text = pattern.sub("***", text)
    return text


def _place(document: Document, line: int) -> Place:
    """Return the innermost value that begins in a line."""
    return max((place for place, at in document.lines.items() if at == line and place), key=len, default=())
