"""What a guard is asked, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from llama_serving.contract.content_filter import Finding


class Stage(StrEnum):
    """What is checked."""

    PROMPT = "prompt"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Passage:
    """A prompt or a text, as far as it has come.

    Attributes:
        text: all of it; of a prompt what the model reads, of a text only what was generated.
        start: where the part begins that was not checked yet, in characters.
        final: the text has ended.
    """

    stage: Stage
    text: str
    start: int = 0
    final: bool = True

    def recent(self, reach: int) -> str:
        """Return the unchecked part with up to `reach` characters in front of it."""
        return self.text[max(0, self.start - reach) :]

    @property
    def has_news(self) -> bool:
        """Whether there is an unchecked part."""
        return self.start < len(self.text)


@dataclass(frozen=True, slots=True)
class Pending:
    """What would block if the text ended here, but might not with what follows: a word that may become a longer one.

    Attributes:
        start: where it begins in the passage's text. From there on nothing leaves until the next check.
    """

    start: int


class Guard(Protocol):
    """Checks passages. Called from several threads at a time, never from an event loop or an engine's thread."""

    def check(self, passage: Passage) -> Sequence[Finding | Pending]:
        """Return what was found; anything that is raised counts as a failure of the guard.

        A text may come in parts: each call has the whole text so far, and `passage.start` says what is new. Only of one that
        is not final something may be pending.
        """


@runtime_checkable
class Closeable(Protocol):
    """A guard that holds something open, such as connections."""

    def close(self) -> None:
        """Release it."""
