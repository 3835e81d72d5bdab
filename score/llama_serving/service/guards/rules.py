"""The operator's own rules: words that must not occur, and regular expressions."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

import regex

from llama_serving.contract.content_filter import Finding
from llama_serving.errors import SetupError
from llama_serving.service.guards.growing_pattern import GrowingPattern, Subject
from llama_serving.service.guards.guard import Passage, Pending

REACH: Final = 2000
"""Characters in front of the unchecked part that a match may begin in."""
_TURKISH: Final = {ord("\u0130"): "i", ord("\u0131"): "i"}


class Rules:
    """Blocks, or annotates, what matches.

    Args:
        name: of the guard; findings of the deny list have it.
        deny: entries; letters match in either case, and an entry that begins or ends with a word matches whole words.
        patterns: regular expressions by the name that their findings have.
        filtered: whether a match blocks.
        timeout_s: seconds that a check may take: backtracking could take for ever.

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
        self._deny = {name: GrowingPattern("|".join(map(_entry, deny)), flags)} if deny else {}
        self._folded = [_folded(entry) for entry in deny]
        self._patterns = {called: _compiled(name, called, pattern) for called, pattern in patterns.items()}
        self._filtered, self._timeout_s = filtered, timeout_s

    def check(self, passage: Passage) -> list[Finding | Pending]:
        """See `Guard.check`. At its end a text is searched as a whole.

        Raises:
            TimeoutError: it takes longer than it may.
        """
        until = time.monotonic() + self._timeout_s
        subject = Subject(passage.text, passage.final)
        start = 0 if passage.final else max(0, passage.start - REACH)
        found: list[Finding | Pending] = []
        deny = self._deny if self._may_be_denied(passage.text[start:], until) else {}
        for name, pattern in (*deny.items(), *self._patterns.items()):
            match = pattern.search(subject, start, until - time.monotonic(), settled=False)
            if match is None:
                continue
            if passage.final or pattern.search(subject, start, until - time.monotonic(), settled=True):
                found.append(Finding(name, self._filtered))
            elif self._filtered:
                found.append(Pending(match.start()))
        return found

    def _may_be_denied(self, text: str, until: float) -> bool:
        """Return whether an entry occurs, as a whole word or not: a search for strings is ten times faster than the pattern.

        Raises:
            TimeoutError: `until`, `time.monotonic()` seconds, is over.
        """
        folded = _folded(text)
        for entry in self._folded:
            if time.monotonic() > until:
                raise TimeoutError
            if entry in folded:
                return True
        return False


def _folded(text: str) -> str:
    """Return a text in which all that `regex` takes for one letter is one: for it, the Turkish I's are the others, too."""
    return text.translate(_TURKISH).casefold()


def _entry(entry: str) -> str:
    before = r"(?<!\w)" if regex.match(r"\w", entry) else ""
    after = r"(?!\w)" if regex.search(r"\w$", entry) else ""
    return f"{before}{regex.escape(entry)}{after}"


def _compiled(guard: str, name: str, pattern: str) -> GrowingPattern:
    try:
        compiled = GrowingPattern(pattern)
    except regex.error as error:
        raise SetupError(f"The guard {guard} has an invalid pattern {name}: {error}. Correct it.") from error
    if compiled.whole.search(""):
        raise SetupError(
            f"The pattern {name} of the guard {guard} matches the empty text, so it would match everything. Correct it."
        )
    return compiled
