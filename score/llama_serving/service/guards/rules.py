"""The operator's own rules: words that must not occur, and regular expressions."""

from collections.abc import Mapping, Sequence
from typing import Final

import regex

from llama_serving.contract.content_filter import Finding
from llama_serving.errors import SetupError
from llama_serving.service.guards.guard import Passage

REACH: Final = 2000
"""Characters in front of the unchecked part that a match may begin in."""


class Rules:
    """Blocks, or annotates, what matches.

    Args:
        name: of the guard; findings of the deny list have it.
        deny: entries; letters match in either case, and an entry that begins or ends with a word matches whole words.
        patterns: regular expressions by the name that their findings have.
        filtered: whether a match blocks.
        timeout_s: seconds that one pattern may take: backtracking could take for ever.

    Raises:
        SetupError: a pattern is invalid, or matches the empty text.
    """

    def __init__(
        self,
        name: str,
        *,
        deny: Sequence[str] = (),
        patterns: Mapping[str, str],
        filtered: bool = True,
        timeout_s: float = 1.0,
    ) -> None:
        flags = regex.IGNORECASE | regex.FULLCASE
        self._deny = {name: regex.compile("|".join(map(_entry, deny)), flags)} if deny else {}
        self._patterns = {called: _compiled(name, called, pattern) for called, pattern in patterns.items()}
        self._filtered, self._timeout_s = filtered, timeout_s

    def check(self, passage: Passage) -> list[Finding]:
        """See `Guard.check`."""
        text = passage.recent(REACH)
        denied = [name for name, words in self._deny.items() if self._is_denied(words, text, passage)]
        matched = [name for name, pattern in self._patterns.items() if self._search(pattern, text)]
        return [Finding(name, self._filtered) for name in (*denied, *matched)]

    def _is_denied(self, words: "regex.Pattern[str]", text: str, passage: Passage) -> bool:
        """Return whether an entry occurs. One at the end of a text that goes on may be the beginning of a longer word."""
        found = words.finditer(text, timeout=self._timeout_s, concurrent=True)
        return any(passage.final or match.end() < len(text) for match in found)

    def _search(self, pattern: "regex.Pattern[str]", text: str) -> bool:
        return pattern.search(text, timeout=self._timeout_s, concurrent=True) is not None


def _entry(entry: str) -> str:
    before = r"(?<!\w)" if regex.match(r"\w", entry) else ""
    after = r"(?!\w)" if regex.search(r"\w$", entry) else ""
    return f"{before}{regex.escape(entry)}{after}"


def _compiled(guard: str, name: str, pattern: str) -> "regex.Pattern[str]":
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise SetupError(f"The guard {guard} has an invalid pattern {name}: {error}. Correct it.") from error
    if compiled.search(""):
        raise SetupError(
            f"The pattern {name} of the guard {guard} matches the empty text, so it would match everything. Correct it."
        )
    return compiled
