"""The screen of `top`, as a terminal shows it."""

from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO

import pytest
from rich.console import Console

from llama_endpoints.monitoring.changes import Changes
from llama_endpoints.monitoring.look import Look
from llama_endpoints.monitoring.overview import KeyUse, Overview
from llama_endpoints.monitoring.scrape import Sample, Scrape
from llama_endpoints.monitoring.screen import Screen

AT = datetime(2026, 1, 31, 9, 15, 2, tzinfo=UTC)
URL = "http://127.0.0.1:8453"


def overview(keys: int) -> Overview:
    """A server with that many keys, the busiest first."""
    info = {"engine": "batching", "backend": "portable", "model": "nano"}
    samples = (Sample("llama_ready", {}, 1), Sample("llama_engine_info", info, 1))
    uses = tuple(KeyUse(f"key-{number:03}", 1, 1000 - number, 1.0, 0.0, 9.0) for number in range(keys))
    refusals = {"429": 1234.5, "500": 0.01, "503": 12.0}
    return replace(Overview.of(Changes(None, Scrape(0, samples))), keys=uses, refusals=refusals)


def shown(look: Look, last: Overview | None, *, height: int, width: int = 80) -> list[str]:
    console = Console(file=StringIO(), force_terminal=True, color_system=None, width=width, height=height)
    with console.capture() as said:
        console.print(Screen(look, last, 2))
    return said.get().splitlines()


@pytest.mark.parametrize("height", [18, 24, 50])
@pytest.mark.parametrize("keys", [0, 1, 8, 9, 10, 35, 36, 101])
@pytest.mark.parametrize("away", [False, True])
def test_it_fits_the_terminal_and_counts_what_it_leaves_out(height: int, keys: int, away: bool) -> None:
    seen, problem = overview(keys), f"{URL} does not answer: Connection refused."
    look = Look(URL, AT, None, problem) if away else Look(URL, AT, seen)
    lines = shown(look, seen, height=height)
    assert len(lines) <= height
    assert lines[0].startswith(f"{URL}   09:15:02 UTC")
    assert lines[-1] == "q ends"
    rows = [line.split()[0] for line in lines if line.startswith("key-")]
    assert rows == [f"key-{number:03}" for number in range(len(rows))]
    left = [int(line.split()[1]) for line in lines if line.startswith("and ")]
    assert len(rows) + sum(left) == keys
    assert any("Trying again" in line for line in lines) == away


def test_a_server_that_never_answered_has_only_its_address_and_why() -> None:
    lines = shown(Look(URL, AT, None, "gone."), None, height=24)
    assert [line for line in lines if line.strip()] == [
        f"{URL}   09:15:02 UTC",
        "gone. Trying again every 2 s.",
        "q ends",
    ]


def test_a_narrow_terminal_cuts_nothing_of_the_numbers() -> None:
    text = " ".join(" ".join(shown(Look(URL, AT, overview(2)), None, height=60, width=30)).split())
    for part in ("1,234/s with 429", "<0.1/s with 500", "12.0/s with 503", "KV cache not known"):
        assert part in text
