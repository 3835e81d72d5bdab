"""`python -m load_tests.reliability report`: docs/reliability.md, from the runs' files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import jinja2

from load_tests.reliability import charts, injected, runs
from load_tests.reliability.chaos.boundaries import FAULTS
from load_tests.reliability.figures import FIGURES, of_kind
from load_tests.reliability.soak import LIMITS, RESIDENT
from load_tests.reliability.trend import BLOCKS, CONFIDENCE, WARM_UP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from load_tests.reliability.figures import Reading, Run

TEMPLATE: Final = Path(__file__).with_name("report.md.j2")
PAGE: Final = runs.ROOT / "docs" / "reliability.md"


@click.command("report")
@click.option("--check", is_flag=True, help="Only check that the page is what the runs say.")
def main(*, check: bool) -> None:
    """Write docs/reliability.md, and a chart for each soak, from the runs in load_tests/reliability/results."""
    found = runs.read()
    text = page(found)
    if check:
        if PAGE.read_text(encoding="utf-8") != text:
            click.echo(
                f"{PAGE} is not what the runs say. Run: python -m load_tests.reliability report", err=True
            )
            raise SystemExit(1)
        return
    PAGE.write_text(text, encoding="utf-8")
    for run in of_kind(found, "soak"):
        picture = PAGE.parent / "pictures" / f"soak-{run['server']}-{run['engine']}.svg"
        picture.write_text(charts.soak(run["rests"]), encoding="utf-8")


def page(found: Sequence[Run]) -> str:
    """Return the page of some runs. A figure that none of them is about was not run."""
    text = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(  # noqa: S701  (Markdown)
        TEMPLATE.read_text(encoding="utf-8")
    ).render(
        figures=[(figure, figure.read(found)) for figure in FIGURES], state=_state, dates=_dates,
        soaks=of_kind(found, "soak"), chaos=of_kind(found, "chaos"), faults=FAULTS, planted=injected.DEFECTS,
        warm_up=round(100 * WARM_UP), blocks=BLOCKS, confidence=round(100 * CONFIDENCE), limit=round(LIMITS["live"]),
        resident=round(RESIDENT / 1e6),
    )  # fmt: skip
    return text.rstrip() + "\n"


def _state(reading: Reading | None) -> str:
    if reading is None:
        return "not run"
    if not reading.met:
        return "**missed**"
    return "met" if reading.whole else "met so far"


def _dates(reading: Reading | None) -> str:
    return ", ".join(sorted({run["date"] for run in reading.runs})) if reading else "–"
