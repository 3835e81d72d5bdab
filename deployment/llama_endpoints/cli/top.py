"""`llama-endpoints top`: what a server does now, in the terminal."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Final

import click

from llama_endpoints.cli.options import FiniteRange
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from llama_endpoints.monitoring.look import Look
    from llama_endpoints.monitoring.monitor import Monitor
    from llama_endpoints.monitoring.overview import Overview

KEY: Final = "LLAMA_TOP_KEY"
_LINES_PER_HEADER: Final = 20


@click.command()
@click.argument("url", default="http://127.0.0.1:8453")
@click.option("--interval", type=FiniteRange(0.1, 3600), default=2.0, help="Seconds from one look to the next.")
@click.option("--once", is_flag=True, help="Look twice, an interval apart; print one table and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per look.")
def top(*, url: str, interval: float, once: bool, as_json: bool) -> None:
    """Show what a running server does: requests, tokens a second, cache, latency, and who uses it.

    \b
    URL is the address of `llama-endpoints serve`; its key comes from LLAMA_TOP_KEY.
    Rates are those since the last look. What a key used is counted when its requests end.
    Keys:  q or Ctrl-C ends.
    Pipe:  one line for each look.
    A server that is away is asked again until it answers; with --once that is an error.
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    from llama_endpoints.connection.key import key_of
    from llama_endpoints.monitoring.client import MetricsClient
    from llama_endpoints.monitoring.monitor import Monitor
    from llama_endpoints.monitoring.screen import is_terminal, watch

    with closing(MetricsClient(url, key_of(KEY), key_name=KEY)) as client:
        monitor = Monitor(client)
        try:
            if once:
                _once(monitor, interval, as_json=as_json)
            elif as_json or not is_terminal():
                _lines(monitor, interval, as_json=as_json)
            else:
                watch(_looks(monitor), interval)
        except KeyboardInterrupt:
            raise SystemExit(130 if once else 0) from None


def _once(monitor: "Monitor", interval: float, *, as_json: bool) -> None:
    _answered(monitor.first())
    time.sleep(interval)
    look = monitor.first()
    seen = _answered(look)
    click.echo(_json(look) if as_json else _report(look.url, seen))


def _answered(look: "Look") -> "Overview":
    if look.overview is None:
        raise SetupError(f"{look.problem} Start a server with `llama-endpoints serve`, or give another URL.")
    return look.overview


def _report(url: str, seen: "Overview") -> str:
    from llama_endpoints.cli.tables import table
    from llama_endpoints.monitoring.words import KEY_HEADER, facts, key_cells

    rows = [["server", url], *([name, said] for name, said in facts(seen))]
    said = "\n".join(f"{name:<10}{text}" for name, text in rows)
    keys = table([KEY_HEADER, *map(key_cells, seen.keys)], left=("KEY",)) if seen.keys else ""
    return f"{said}\n\n{keys}" if keys else said


def _json(look: "Look") -> str:
    from llama_endpoints.monitoring.words import value
    from llama_serving.contract.json_lines import json_line

    return json_line(value(look))


def _looks(monitor: "Monitor") -> Iterator["Look"]:
    yield monitor.first()
    while True:
        yield monitor.again()


def _lines(monitor: "Monitor", interval: float, *, as_json: bool) -> None:
    from llama_endpoints.monitoring.words import header, line

    for number, look in enumerate(_looks(monitor)):
        if not as_json and number % _LINES_PER_HEADER == 0:
            click.echo(header())
        click.echo(_json(look) if as_json else line(look))
        time.sleep(interval)
