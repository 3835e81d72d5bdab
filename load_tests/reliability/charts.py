"""Charts of runs, as SVG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from load_tests.reliability.trend import WARM_UP

if TYPE_CHECKING:
    from load_tests.reliability.soak import Soak


def soak(run: Soak) -> str:
    """Draw what a server held after each cycle, and its latency, over the requests so far; the warm-up is shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    requests = [rest.requests for rest in run.rests]
    drawn = {
        "MB of memory": [rest.memory / 1e6 for rest in run.rests],
        "threads, descriptors": [rest.threads for rest in run.rests],
        "places, % of the cache": [rest.places for rest in run.rests],
        "latency, ms (p50, p99, first event)": [_ms(rest.median_s) for rest in run.rests],
    }
    every = figure.subplots(2, 2)
    for axes, (title, values) in zip(every.flat, drawn.items(), strict=True):
        axes.plot(requests, values)
        axes.set(title=title, xlabel="requests")
        if requests:
            axes.axvspan(requests[0], requests[int(len(requests) * WARM_UP)], alpha=0.15, color="gray", lw=0)
    every[0, 1].plot(requests, [rest.descriptors for rest in run.rests])
    every[1, 0].plot(requests, [100 * rest.blocks for rest in run.rests])
    every[1, 1].plot(requests, [_ms(rest.p99_s) for rest in run.rests])
    every[1, 1].plot(requests, [_ms(rest.first_s) for rest in run.rests])
    return _svg(figure)


def _ms(seconds: float | None) -> float:
    return float("nan") if seconds is None else seconds * 1e3


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
