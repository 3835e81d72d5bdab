"""The screen of `top` on a terminal."""

import sys
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llama_endpoints.monitoring.keyboard import Keyboard
from llama_endpoints.monitoring.look import Look
from llama_endpoints.monitoring.overview import READY, KeyUse, Overview
from llama_endpoints.monitoring.words import KEY_HEADER, facts, key_cells

_OTHER_LINES = 11
"""Lines besides the rows of keys."""


def is_terminal() -> bool:
    """Return whether standard output can be drawn on again and again: a terminal that is not a dumb one."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def watch(looks: Iterator[Look], interval: float) -> None:
    """Show each look on the whole terminal, until somebody ends it.

    Args:
        looks: without an end.
        interval: seconds from one to the next.
    """
    console, last = Console(highlight=False), None
    look = next(looks)  # an error is said before the terminal is taken
    with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            last = look.overview or last
            live.update(screen(look, last, interval=interval, height=console.height), refresh=True)
            if keyboard.quits_within(interval):
                return
            look = next(looks)


def screen(look: Look, last: Overview | None, *, interval: float, height: int) -> RenderableType:
    """Return the whole screen.

    Args:
        look: what was seen now.
        last: what was seen when the server answered last; it is shown dim while the server is away.
        interval: seconds until the next look.
        height: lines of the terminal.
    """
    head = Text.assemble((look.url, "bold"), f"   {look.at:%H:%M:%S} UTC", overflow="ellipsis", no_wrap=True)
    parts: list[RenderableType] = [head, Text()]
    seen = look.overview
    if seen is None:
        parts.append(Text(f"{look.problem} Trying again every {interval:g} s.", "red"))
        parts.append(Text())
    if (shown := seen or last) is not None:
        style = "" if seen is not None else "dim"
        parts += [_facts(shown, style), Text(), _keys(shown.keys, style, most=max(1, height - _OTHER_LINES))]
    return Group(*parts, Text("\nq ends", "dim"))


def _facts(seen: Overview, style: str) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, said in facts(seen):
        alarming = name == "model" and seen.state != READY
        grid.add_row(name, Text(said, "yellow" if alarming and not style else ""), style=style)
    return grid


def _keys(uses: tuple[KeyUse, ...], style: str, *, most: int) -> RenderableType:
    if not uses:
        return Text("No request has ended yet.", "dim")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", row_styles=[style])
    for name in KEY_HEADER:
        table.add_column(name, justify="left" if name == "KEY" else "right", no_wrap=True)
    for use in uses[:most]:
        table.add_row(*map(Text, key_cells(use)))
    hidden = len(uses) - most
    return Group(table, Text(f"and {hidden} more keys", "dim")) if hidden > 0 else table
