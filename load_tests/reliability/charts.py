"""Charts of runs, as SVG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from load_tests.reliability.trend import WARM_UP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def soak(rests: Mapping[str, Sequence[float | None]]) -> str:
    """Draw what a server held after each cycle, and its latency, over the requests so far; the warm-up is shaded.

    Args:
        rests: a list for each field of `soak.Rest`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn = (
        ("MB of memory", {"live": 1e-6, "memory": 1e-6}),
        ("threads and descriptors", {"threads": 1.0, "descriptors": 1.0}),
        ("places, % of the cache in use", {"places": 1.0, "blocks": 100.0}),
        ("latency in ms", {"median_s": 1e3, "p99_s": 1e3, "first_s": 1e3}),
    )
    requests = rests["requests"]
    with rc_context({"svg.hashsalt": "soak", "font.size": 8}):
        figure = Figure(figsize=(9, 5), layout="constrained")
        for axes, (title, lines) in zip(figure.subplots(2, 2).flat, drawn, strict=True):
            for name, unit in lines.items():
                values = [float("nan") if value is None else unit * value for value in rests[name]]
                axes.plot(requests, values, label=name.removesuffix("_s"))
            axes.set(title=title, xlabel="requests")
            if len(lines) > 1:
                axes.legend()
            if requests:
                axes.axvspan(
                    requests[0], requests[int(len(requests) * WARM_UP)], alpha=0.15, color="gray", lw=0
                )
        return _svg(figure)


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
