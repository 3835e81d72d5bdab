"""Keys and tokens in texts, found by detect-secrets' patterns. The only file that imports it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Final

import regex

from llama_serving.contract.content_filter import Finding
from llama_serving.errors import SetupError
from llama_serving.service.guards.growing_pattern import GrowingPattern, Subject
from llama_serving.service.guards.guard import Passage, Pending

if TYPE_CHECKING:
    import re

PIECE: Final = 4096
"""Characters that are searched at a time: some patterns take a time that is quadratic in the length of a line."""
OVERLAP: Final = 2048
"""Characters that a piece shares with the next one. A key of that length is always found; the longest of a fixed form, GitLab's
for agents, has 1,033."""
NO_DEFAULT: Final = frozenset(("KeywordDetector", "IPPublicDetector", "BasicAuthDetector"))
"""Detectors that find much that is no key; they run only if they are named."""
_NEEDED: Final[Mapping[str, str]] = {"OpenAIDetector": "T3BlbkFJ", "NpmDetector": "/:_authToken="}
"""What is in each match of the slowest patterns: without it they need not be tried."""
_BREAKS: Final = dict.fromkeys(map(ord, "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), "\n")
"""What ends a line for `str.splitlines`."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of detect-secrets' detectors.

    Attributes:
        name: of what it finds.
        needed: stands in each match.
        patterns: with groups, one of them must not be empty.
        detector: of that package.
    """

    name: str
    needed: str
    patterns: tuple[GrowingPattern, ...]
    detector: Any

    @classmethod
    def of(cls, detector: Any) -> "_Kind":
        found = getattr(detector, "denylist", None)
        if found is None:  # the detector of keywords
            found = import_module(type(detector).__module__).QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP
        patterns = tuple(GrowingPattern(one.pattern, one.flags | regex.MULTILINE) for one in found)
        return cls(detector.secret_type, _NEEDED.get(type(detector).__name__, ""), patterns, detector)

    def begins(self, subject: Subject, start: int, until: float, *, settled: bool) -> int | None:
        """Return where the first key of a piece begins, from `start` on; None if there is none.

        Args:
            settled: what follows must not undo it.
            until: `time.monotonic()` seconds.

        Raises:
            TimeoutError: that is over.
        """
        if self.needed not in subject.text:
            return None
        found = [
            at
            for pattern in self.patterns
            for at in self._begins(pattern, subject, start, until, settled=settled)
        ]
        return min(found, default=None)

    def _begins(
        self, pattern: GrowingPattern, subject: Subject, start: int, until: float, *, settled: bool
    ) -> list[int]:
        # One search over all lines is faster than one for each. It finds too much: what goes over several lines.
        if pattern.search(subject, start, until - time.monotonic(), settled=False) is None:
            return []
        matches = pattern.of_lines(subject, start, until - time.monotonic(), settled=settled)
        return [match.start() for match in matches if self._is_valid(match)]

    def _is_valid(self, match: "regex.Match[str]") -> bool:
        """Return whether a match within one line is a key, as `analyze_string` decides it."""
        if match.re.groups and not any(match.groups()):
            return False
        check = getattr(self.detector, "is_formally_valid", None)
        return check is None or bool(check(match[0]))


class SecretDetection:
    """Blocks, or annotates, texts with keys.

    Its searches release the interpreter's lock, so that the engine goes on.

    Args:
        name: of the guard; its findings have it.
        detectors: names of detect-secrets' classes; none means all but `NO_DEFAULT`.
        filtered: whether a key blocks.
        timeout_s: seconds that a check may take.

    Raises:
        SetupError: detect-secrets is not installed, or lacks a detector.
    """

    def __init__(
        self, name: str, *, detectors: Sequence[str] = (), filtered: bool = True, timeout_s: float = 5.0
    ) -> None:
        known = _detectors("A guard of the type secrets")
        for unknown in (one for one in detectors if one not in known):
            raise SetupError(f"The guard {name} names the detector {unknown}, which detect-secrets lacks. Name some of "
                             f"{', '.join(sorted(known))}.")  # fmt: skip
        self._name, self._filtered, self._timeout_s = name, filtered, timeout_s
        self._kinds = [_Kind.of(known[one]()) for one in detectors or sorted(known.keys() - NO_DEFAULT)]

    def check(self, passage: Passage) -> list[Finding | Pending]:
        """See `Guard.check`. At its end a text is searched as a whole.

        Raises:
            TimeoutError: it takes longer than it may.
        """
        until = time.monotonic() + self._timeout_s
        found: dict[str, None] = {}
        pending: list[Finding | Pending] = []
        text = passage.text.translate(_BREAKS)
        for piece in pieces(text, 0 if passage.final else max(0, passage.start - OVERLAP), final=passage.final):
            is_last = piece.offset + len(piece.subject.text) == len(text)
            for kind in (one for one in self._kinds if one.name not in found):
                if kind.begins(piece.subject, piece.start, until, settled=True) is not None:
                    found[kind.name] = None
                elif is_last and not passage.final:
                    at = kind.begins(piece.subject, piece.start, until, settled=False)
                    pending += [] if at is None else [Pending(piece.offset + at)]
        kinds = [one.name for one in self._kinds if one.name in found]
        if kinds:
            return [Finding(self._name, self._filtered, {"kinds": kinds})]
        return pending if self._filtered else []


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text.

    Attributes:
        subject: the part, with the character in front of it, which patterns may look at.
        offset: of the subject in the text.
        start: where in the subject the search begins.
    """

    subject: Subject
    offset: int
    start: int


def pieces(text: str, start: int, *, final: bool) -> Iterator[Piece]:
    """Yield the pieces of a text that reach behind `start`. Their borders are the same however the text came."""
    for low in range(0, max(1, len(text) - OVERLAP), PIECE - OVERLAP):
        high = min(len(text), low + PIECE)
        if high > start:
            offset = max(0, low - 1)
            subject = Subject(text[offset:high], complete=final and high == len(text))
            yield Piece(subject, offset, max(low, start) - offset)


def patterns(needed_by: str) -> list[tuple[str, "re.Pattern[str]"]]:
    """Return the patterns of all detectors but `NO_DEFAULT`, each with the kind of key that it finds.

    A match is the whole key, where `analyze_string` returns a pattern's groups: of a GitHub token the first three letters.

    Raises:
        SetupError: detect-secrets is not installed; `needed_by` says who needs it.
    """
    return [
        (one.secret_type, pattern)
        for name, one in sorted(_detectors(needed_by).items())
        if name not in NO_DEFAULT
        for pattern in one.denylist
    ]


def _detectors(needed_by: str) -> dict[str, Any]:
    """Return detect-secrets' classes by name, without those that need more than a line's text."""
    try:
        plugins = import_module("detect_secrets.plugins")
        base = import_module("detect_secrets.plugins.base").BasePlugin
    except ImportError as error:
        raise SetupError(f"{needed_by} needs detect-secrets. Install llama-endpoints[guards].") from error
    modules = (import_module(f"{plugins.__name__}.{one.name}") for one in iter_modules(plugins.__path__))
    return {
        name: value
        for module in modules
        if "entropy" not in module.__name__
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
        and name.endswith("Detector") and not getattr(value, "__abstractmethods__", None)
    }  # fmt: skip
