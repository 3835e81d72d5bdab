"""Waiting for what takes minutes, with a line that says for how long. Who stops waiting stops nothing in Azure."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any

import click

EVERY_S = 5.0
"""Between two looks at what somebody else has under way; azure-ai-ml looks as often."""
_LOOK_S = 0.2


@contextmanager
def shown(what: str, again: str) -> Iterator[Callable[[], None]]:
    """A line with the time, moved on by each call, until the block is left.

    Args:
        what: is waited for.
        again: a command that shows how it goes on, for who stops waiting.
    """
    from tqdm import tqdm

    often = 0.1 if sys.stderr.isatty() else 60  # seconds: a log keeps every line
    try:
        with tqdm(
            desc=what, bar_format="{desc}: {elapsed}", mininterval=often, delay=_LOOK_S, file=sys.stderr
        ) as line:
            yield lambda: _on(line)
    except (KeyboardInterrupt, SystemExit):
        click.echo(
            f"Not waited for any longer: {what}. Azure goes on with it; look again with: {again}", err=True
        )
        raise


def _on(line: Any) -> None:
    line.update(0)


def finished(poller: Any, tick: Callable[[], None]) -> Any:
    """The result of an operation of azure-ai-ml's, when it is there."""
    while not poller.done():
        poller.wait(_LOOK_S)
        tick()
    return poller.result()


def until(condition: Callable[[], bool], tick: Callable[[], None]) -> None:
    """Wait until it holds, however long that takes."""
    while not condition():
        time.sleep(EVERY_S)
        tick()


@contextmanager
def silent() -> Iterator[None]:
    """azure-ai-ml prints dots while it polls and empty lines when it has uploaded. Its bars of an upload stay, where somebody looks."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        others: IO[str] = sys.stderr if sys.stderr.isatty() else nowhere
        with redirect_stderr(others):
            yield
