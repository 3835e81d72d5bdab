"""Replaces keys, tokens, passwords and e-mail addresses of known forms by `[REDACTED:kind]`. Whatever it raises, the text must not be used.

Patterns run in `regex`, without the interpreter's lock and with a time limit: a prompt may be made to take long.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import regex

from llama_serving.service.collection.quoted_value import BEGIN, NAMES, end_of_value
from llama_serving.service.guards.secret_detection import patterns

LIMIT_S: Final = 2.0
"""Seconds that one request's texts may take."""
WINDOW: Final = 8192
"""Characters that are searched at a time, so that a pattern's time does not grow with the square of a text."""
OVERLAP: Final = 2048
OWN: Final = "own-key"
SHORTEST: Final = 8
"""Characters of a key that is looked for itself: a shorter one is a word that stands in many texts."""
HEAD: Final = 512
"""Characters in front of a value that its pattern may need: a name, a type, quotes."""
_VALUE: Final = r"(?:[A-Za-z0-9+/_=~!@#$%^*?|-]|&(?!\w{1,64}=)|\.(?=[\w+/=~!@#$%^*?|-])|:(?=\w))"
"""A character of a value without quotes; a dot or a colon is inside of it."""
_EXPRESSION: Final = r"[A-Za-z_]\w*+(?:(?:\.[A-Za-z_]\w*+)++(?![\w+/=~!@#$%^&*?|-])|(?:\.[A-Za-z_]\w*+)*+[(\[])"
"""An attribute, a call or an index: code, and no value."""
_DOMAIN: Final = r"(?:[\w-]{1,63}\.){1,8}[\w-]{2,63}"
_SHAPES: Final = {
    "private-key": r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z0-9 ]{0,20}-----",
    "email": rf"(?<![\w.%+'-])[\w.%+'-]++@{_DOMAIN}|(?<![\w.+'-])[\w.+'-]++%40{_DOMAIN}",
    "bearer": r"(?i:\bbearer)[ \t]+(?P<secret>(?=[A-Za-z]*(?:[\d_~+/=-]|\.[A-Za-z0-9]))[A-Za-z0-9._~+/=-]{8,})",
    "password": BEGIN,
    "assigned-key": (
        rf"(?i:{NAMES})\w{{0,32}}[\"'`]?[ \t]{{0,8}}[:=]=?[ \t]{{0,8}}"
        rf"(?!{_EXPRESSION})(?P<secret>(?=(?:(?!\d){_VALUE})*+\d){_VALUE}{{8,}}+)"
    ),
    "basic-auth": r"://[^\s/@:]{0,256}:(?P<secret>[^\s/@]{1,256})@",
    "shared-access-signature": r"[?&;]sig=(?P<secret>[A-Za-z0-9%+/=_-]{20,})",
    "api-key": (
        r"(?<![A-Za-z0-9])(?:sk|pk|rk)[-_](?=[\w-]*\d)[\w-]{16,}"
        r"|(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|glpat-|hf_|npm_|dckr_pat_|dop_v1_|shp(?:at|ss|ca)_|AIza|ya29\.)(?=[\w-]*[\dA-Z])[\w-]{16,}"
    ),
}  # fmt: skip
"""Shapes that detect-secrets lacks, or finds in part only: of a private key it finds the head."""
_WHOLE: Final = frozenset(("api-key",))
"""Of these a match may be a part of a longer word, as of detect-secrets' kinds (of a JSON web token it finds all but the
signature): the whole word goes."""
_MORE: Final = regex.compile(rf"{_VALUE}*+")
_AFTER: Final = regex.compile(r"(?:[A-Za-z0-9_+/=~-]|\.(?=[A-Za-z0-9_-]))*+")
_WORD: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+/-")


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text that is to be replaced; `wide` if the word around it goes too."""

    start: int
    end: int
    kind: str
    wide: bool = False


class RedactionError(Exception):
    """A text could not be redacted in time. The message never quotes it."""


class Redactor:
    """Removes secrets from texts.

    Args:
        known: keys of the operator, which are removed wherever they occur if they are not shorter than `SHORTEST`.

    Raises:
        SetupError: detect-secrets is not installed.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = tuple(known)
        found = [(_kind(kind), _as_regex(pattern), True) for kind, pattern in patterns("LLAMA_COLLECT")]
        ours = [
            (kind, regex.compile(pattern, regex.MULTILINE), kind in _WHOLE) for kind, pattern in _SHAPES.items()
        ]
        self._patterns = (*found, *ours)

    def redacting(self, secrets: Sequence[str] = ()) -> "Redaction":
        """Return what redacts the texts of one request, which came with these keys."""
        long = (one for one in (*self._known, *secrets) if len(one) >= SHORTEST)
        return Redaction(self._patterns, tuple(long))


class Redaction:
    """Redacts the texts of one request, in `LIMIT_S` together."""

    def __init__(
        self, compiled: Sequence[tuple[str, "regex.Pattern[str]", bool]], secrets: Sequence[str]
    ) -> None:
        self._patterns, self._secrets = compiled, secrets
        self._until = time.monotonic() + LIMIT_S

    def __call__(self, text: str) -> str:
        """Return the text with marks in the place of secrets.

        Raises:
            RedactionError: it takes too long.
        """
        return _marked(text, self._spans(text))

    def by_form(self, text: str) -> str:
        """Return a text in which keys stay that are only known themselves, such as a request's id.

        Raises:
            RedactionError: it takes too long.
        """
        return _marked(text, self._formed(text))

    def together(
        self, prompt: str, completions: Sequence[str], gap: int | None = None
    ) -> tuple[str, tuple[str, ...]]:
        """Return a prompt and its completions. What begins in the prompt and ends in a completion is marked in both.

        Args:
            prompt: of all completions.
            completions: texts that go on where the prompt ends.
            gap: number of the prompt's characters in front of the completions; None is all.

        Raises:
            RedactionError: it takes too long.
        """
        border = len(prompt) if gap is None else gap
        inside = list(merged(prompt, self._spans(prompt)))
        open_since = [one.start - HEAD for one in inside if one.start < border <= one.end]
        low = max(0, min(border - OVERLAP, *open_since, border))
        cleaned = []
        for completion in completions:
            joined, at = prompt[low:border] + completion, border - low
            # What is in one of them alone does not take a word of the other along.
            over_border = [
                replace(one, wide=one.wide and one.start < at) for one in self._spans(joined) if one.end > at
            ]
            over = list(merged(joined, over_border))
            inside += [
                replace(one, start=low + one.start, end=border, wide=False) for one in over if one.start < at
            ]
            behind = [Span(max(0, one.start - at), one.end - at, one.kind) for one in over]
            cleaned.append(_marked(completion, (*behind, *self._spans(completion))))
        return _marked(prompt, inside), tuple(cleaned)

    def _spans(self, text: str) -> Iterator[Span]:
        for secret in self._secrets:
            at = text.find(secret)
            while at >= 0:
                self._left_s()
                yield Span(at, at + len(secret), OWN)
                at = text.find(secret, at + 1)
        yield from self._formed(text)

    def _formed(self, text: str) -> Iterator[Span]:
        for start in range(0, max(1, len(text) - OVERLAP), WINDOW - OVERLAP):
            yield from self._found(text, start, text[start : start + WINDOW])

    def _found(self, text: str, start: int, window: str) -> Iterator[Span]:
        for kind, pattern, wide in self._patterns:
            try:
                for match in pattern.finditer(window, timeout=self._left_s(), concurrent=True):
                    span = self._span(kind, match, text, start)
                    if span is not None:
                        yield replace(span, wide=wide)
            except TimeoutError:
                raise RedactionError(f"took more than {LIMIT_S:g} s") from None

    def _span(self, kind: str, match: "regex.Match[str]", text: str, start: int) -> Span | None:
        """Return what a match in the window that begins at `start` stands for: its end may be outside of the window."""
        begin, end = (start + at for at in match.span("secret" if "secret" in match.re.groupindex else 0))
        if kind == "password":
            escapes, quote = len(match["escapes"]), match["quote"]
            value_end = end_of_value(text, end, escapes, quote, self._left_s())
            return None if value_end is None else Span(end, value_end, kind)
        if kind == "private-key":
            end = _end_of_key(text, end)
        elif kind == "assigned-key" and (more := _MORE.match(text, end, timeout=self._left_s())) is not None:
            end = more.end()
        return Span(begin, end, kind)

    def _left_s(self) -> float:
        """Return the seconds that are left.

        Raises:
            RedactionError: none are.
        """
        left = self._until - time.monotonic()
        if left <= 0:
            raise RedactionError(f"took more than {LIMIT_S:g} s")
        return left


def _marked(text: str, spans: Iterable[Span]) -> str:
    """Return the text with marks in the place of spans."""
    pieces, at = [], 0
    for span in merged(text, spans):
        pieces += [text[at : span.start], f"[REDACTED:{span.kind}]"]
        at = span.end
    return "".join((*pieces, text[at:]))


def merged(text: str, spans: Iterable[Span]) -> Iterator[Span]:
    """Yield the spans in order, each with the word around it if it is wide; those that overlap become one."""
    last: Span | None = None
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        covered = last.end if last is not None else 0
        start, end = span.start, span.end
        if span.wide and end > covered:
            while start > covered and text[start - 1] in _WORD:
                start -= 1
            word = _AFTER.match(text, end)
            end = word.end() if word is not None else end
        if last is not None and start < covered:
            last = Span(last.start, max(covered, end), last.kind)
            continue
        if last is not None:
            yield last
        last = Span(start, end, span.kind)
    if last is not None:
        yield last


def _end_of_key(text: str, at: int) -> int:
    """Return where a private key ends whose head ends at `at`: behind its last line, or at the end of the text."""
    foot = text.find("-----END", at)
    if foot < 0:
        return len(text)
    line = text.find("-----", foot + len("-----END"))
    return len(text) if line < 0 else line + len("-----")


def _as_regex(pattern: "re.Pattern[str]") -> "regex.Pattern[str]":
    """Return the same pattern, which finds lines' ends in a text of several lines."""
    ignoring = regex.IGNORECASE if pattern.flags & re.IGNORECASE else 0
    return regex.compile(pattern.pattern, regex.MULTILINE | ignoring)


def _kind(secret_type: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", secret_type.lower()).strip("-")
