"""Wait for long operations with a progress line. Interrupting the wait does not stop the operation in Azure."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any

import click

EVERY_S = 5.0
"""The interval between two checks of another operation; azure-ai-ml polls as often."""
_LOOK_S = 0.2


@contextmanager
def progress_line(what: str, status_command: str) -> Iterator[Callable[[], None]]:
    """Show a line with the elapsed time until the block ends. Each call of the yielded function updates it.

    Args:
        what: the operation, in words.
        status_command: a command that shows the progress, printed if the wait is interrupted.
    """
    from tqdm import tqdm

    often = 0.1 if sys.stderr.isatty() else 60  # seconds; a log keeps every line
    try:
        with tqdm(
            desc=what, bar_format="{desc}: {elapsed}", mininterval=often, delay=_LOOK_S, file=sys.stderr
        ) as line:
            yield lambda: _refresh(line)
    except (KeyboardInterrupt, SystemExit):
        click.echo(
            f"Stopped waiting for {what}. The operation continues in Azure; check it with: {status_command}",
            err=True,
        )
        raise


def _refresh(line: Any) -> None:
    line.update(0)


def result_of(poller: Any, tick: Callable[[], None]) -> Any:
    """Wait for azure-ai-ml's poller and return its result."""
    while not poller.done():
        poller.wait(_LOOK_S)
        tick()
    return poller.result()


def until(condition: Callable[[], bool], tick: Callable[[], None]) -> None:
    """Wait until the condition holds, without a time limit."""
    while not condition():
        time.sleep(EVERY_S)
        tick()


@contextmanager
def silent() -> Iterator[None]:
    """Hide the dots and empty lines that azure-ai-ml prints. Upload progress bars stay visible on a terminal."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        others: IO[str] = sys.stderr if sys.stderr.isatty() else nowhere
        with redirect_stderr(others):
            yield
