"""What the user types: a line editor in a terminal, or the lines of a pipe."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from llama_endpoints.chat.commands import COMMANDS
from llama_endpoints.chat.conversation import Mistake
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

HISTORY: Final = Path("llama-endpoints", "chat-history")
"""Below the user's folder for state (XDG Base Directory)."""


class Input(Protocol):
    """Where text comes from."""

    def read(self) -> str:
        """Return the next text.

        Raises:
            EOFError: there is no more.
            KeyboardInterrupt: the user pressed Ctrl-C.
            Mistake: what was typed is no text.
        """


class LineEditor:
    """A terminal's line editor: Enter sends, Alt-Enter begins a line, the arrow keys go through what was typed before."""

    def __init__(self, *, keep: bool) -> None:
        self._session: PromptSession[str] = PromptSession(
            "\n> ",
            multiline=True,
            key_bindings=_keys(),
            history=_history() if keep else InMemoryHistory(),
            completer=WordCompleter([*COMMANDS], sentence=True),
            complete_while_typing=False,
            prompt_continuation="  ",
        )

    def read(self) -> str:
        """See `Input.read`."""
        return self._session.prompt()


class Lines:
    """The lines of standard input, each a text; blank ones are left out."""

    def __init__(self) -> None:
        self._lines: Iterator[bytes] = iter(sys.stdin.buffer)
        self._number = 0

    def read(self) -> str:
        """See `Input.read`."""
        for raw in self._lines:
            self._number += 1
            try:
                text = raw.decode("utf-8-sig" if self._number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise Mistake(f"Line {self._number} is not UTF-8.") from error
            if text.strip():
                return text
        raise EOFError


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")  # Enter, if it was typed while an answer was shown
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """Return the history in a file that only the user may read.

    Raises:
        SetupError: the file cannot be written.
    """
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / HISTORY
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise SetupError(f"The history can't be kept in {path}: {error.strerror}.") from error
    return FileHistory(path)
