"""The screen of `top` on a terminal."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llama_endpoints.monitoring.keyboard import Keyboard
from llama_endpoints.monitoring.look import Look
from llama_endpoints.monitoring.overview import READY, KeyUse, Overview
from llama_endpoints.monitoring.words import KEY_HEADER, facts, key_cells

_AROUND_ROWS = 4
"""Lines around the rows of keys: their header, how many more there are, and two at the end."""


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
            live.update(Screen(look, last, interval), refresh=True)
            if keyboard.quits_within(interval):
                return
            look = next(looks)


@dataclass(frozen=True, slots=True)
class Screen:
    """What the terminal shows, as something that rich draws.

    Attributes:
        look: what was seen now.
        last: what was seen when the server answered last; it is shown dim while the server is away.
        interval: seconds until the next look.
    """

    look: Look
    last: Overview | None
    interval: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it. The keys get the lines that are left."""
        above = Group(*self._above())
        yield above
        if self._shown is not None:
            left = console.height - len(console.render_lines(above, options)) - _AROUND_ROWS
            yield _keys(self._shown.keys, self._style, most=max(0, left))
        yield Text("\nq ends", "dim")

    @property
    def _shown(self) -> Overview | None:
        return self.look.overview or self.last

    @property
    def _style(self) -> str:
        return "dim" if self.look.overview is None else ""

    def _above(self) -> Iterator[RenderableType]:
        time = f"   {self.look.at:%H:%M:%S} UTC"
        yield Text.assemble((self.look.url, "bold"), time, overflow="ellipsis", no_wrap=True)
        yield Text()
        if self.look.overview is None:
            yield Text(f"{self.look.problem} Trying again every {self.interval:g} s.\n", "red")
        if self._shown is not None:
            yield _facts(self._shown, self._style)
            yield Text()


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
