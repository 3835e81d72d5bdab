"""The loop: read, ask, show. Ctrl-C stops an answer, not the program."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from llama_endpoints.chat.commands import Ended, understand
from llama_endpoints.chat.conversation import Conversation, Mistake, Question
from llama_endpoints.chat.interrupts import one_interrupt
from llama_endpoints.chat.model import ChatModel, Refused, finish_reason_of, text_of
from llama_endpoints.chat.screen import Screen
from llama_endpoints.chat.typing_lines import Input

TOO_LONG: Final = ("context_exceeded", "context_length_exceeded")
ENDS: Final = {
    "length": "cut off by max_tokens or the context",
    "deadline": "cut off by the time limit",
    "content_filter": "blocked by the content filter",
}


def talk(
    model: ChatModel, conversation: Conversation, given: Input, screen: Screen, *, interactive: bool
) -> bool:
    """Talk until there is no more input.

    Args:
        model: answers.
        conversation: its state.
        given: what is typed.
        screen: where it is shown.
        interactive: Ctrl-C while nothing runs is no end, and each answer is followed by its numbers.

    Returns:
        Whether everything could be answered.

    Raises:
        KeyboardInterrupt: Ctrl-C while nothing runs, where it is not interactive.
    """
    all_well = True
    while True:
        try:
            all_well &= _turn(model, conversation, given, screen, interactive=interactive)
        except (EOFError, Ended):
            return all_well
        except KeyboardInterrupt:
            if not interactive:
                raise
            screen.note("Ctrl-D or /exit ends.")


def _turn(
    model: ChatModel, conversation: Conversation, given: Input, screen: Screen, *, interactive: bool
) -> bool:
    """Read one text and do what it says. Return whether that could be done."""
    try:
        typed = given.read()
        meant = understand(typed, conversation, model) if typed.strip() else None
    except Mistake as error:
        screen.error(str(error))
        return False
    if isinstance(meant, Question):
        return _answer(model, conversation, meant, screen, interactive=interactive)
    if meant:
        screen.note(meant)
    return True


@dataclass(slots=True)
class _Progress:
    """What is known of an answer so far."""

    text: str = ""
    tokens: int | None = None
    reason: str | None = None

    def take(self, event: Mapping[str, Any]) -> str:
        """Take one event, and return its text."""
        piece = text_of(event)
        self.text += piece
        self.reason = finish_reason_of(event) or self.reason
        self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)
        return piece

    def numbers(self, seconds: float, *, continues: bool) -> str:
        """Return how much came in how long, and why it ended; `continues`: it can be continued."""
        rate = (self.tokens or 0) / max(seconds, 1e-9)
        counted = "" if self.tokens is None else f"{self.tokens} tokens, {rate:.1f}/s, "
        cut_off = ENDS.get(self.reason or "")
        more = "; /more continues" if cut_off and continues and self.reason != "content_filter" else ""
        return f"{counted}{seconds:.1f} s; {cut_off or 'ended'}{more}"


def _answer(
    model: ChatModel, conversation: Conversation, question: Question, screen: Screen, *, interactive: bool
) -> bool:
    """Show one answer, and return whether it is whole or was stopped by the user."""
    progress, began = _Progress(), time.monotonic()
    stopped, refused = False, None
    screen.begin(question.before if question.echoes else "")
    with one_interrupt():
        try:
            with closing(model.stream(question.body)) as events:
                for event in events:
                    screen.piece(progress.take(event))
        except KeyboardInterrupt:
            stopped = True
        except Refused as error:
            refused = error
        if progress.text or refused is None:
            screen.end(question.after)
        conversation.answered(question, progress.text)
    if refused is not None:
        shorter = refused.code in TOO_LONG and conversation.turns
        screen.error(f"{refused}{' /undo and /new make the dialog shorter.' if shorter else ''}")
        return False
    if interactive:
        screen.note(
            "stopped" if stopped else progress.numbers(time.monotonic() - began, continues=not question.after)
        )
    return True
