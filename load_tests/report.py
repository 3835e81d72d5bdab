"""A load test's samples as tables, charts and one HTML page."""

from __future__ import annotations

import io
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from load_tests.protocols import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from load_tests.samples import Sample

TEMPLATE: Final = Path(__file__).with_name("report.html.j2")
LATE_S: Final = 0.1
"""From this delay on a request counts as sent late."""
POINTS: Final = np.concatenate([np.arange(0, 99.0, 1.0), np.arange(99.0, 99.95, 0.1)])
COLUMNS: Final = (
    "route", "requests", "answered", "refused", "busy", "cancelled", "wrong",
    "p50 s", "p90 s", "p99 s", "first p50 s", "first p99 s", "token p50 ms", "token p99 ms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What was run.

    Attributes:
        server: the server.
        users: concurrent users.
        workload: the text of its file.
        seconds: the intended duration.
        interrupted: whether it was interrupted.
    """

    server: str
    users: int
    workload: str
    seconds: int
    interrupted: bool = False


def outcomes(samples: Iterable[Sample]) -> dict[str, int]:
    """Return the number of samples by outcome."""
    counted = Counter(sample.outcome for sample in samples)
    return {outcome: counted[outcome] for outcome in OUTCOMES}


def rows(samples: Sequence[Sample]) -> list[list[str]]:
    """Return a row per route, whole and streamed separately, and a total: `COLUMNS`. Times count answered requests only."""
    groups: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=_name):
        groups.setdefault(_name(sample), []).append(sample)
    if len(groups) > 1:
        groups["all"] = list(samples)
    return [_row(name, group) for name, group in groups.items()]


def _row(name: str, samples: Sequence[Sample]) -> list[str]:
    answered = [sample for sample in samples if sample.outcome == "answered"]
    whole = [sample.seconds for sample in answered]
    first = [sample.first_s for sample in answered if sample.first_s is not None]
    token = [sample.token_s * 1e3 for sample in answered if sample.token_s is not None]
    return [
        name,
        str(len(samples)),
        *(str(count) for count in outcomes(samples).values()),
        *(_percentile(whole, q, 2) for q in (50, 90, 99)),
        *(_percentile(first, q, 2) for q in (50, 99)),
        *(_percentile(token, q, 1) for q in (50, 99)),
    ]


def _percentile(values: Sequence[float], q: float, digits: int) -> str:
    return f"{np.percentile(values, q):.{digits}f}" if values else "–"


def _name(sample: Sample) -> str:
    return sample.route + (", streamed" if sample.stream else "")


def rates(samples: Sequence[Sample]) -> str:
    """Return requests and tokens a second, from the first request to the last answer."""
    seconds = max((s.at + s.seconds for s in samples), default=0.0) - min((s.at for s in samples), default=0.0)
    if not seconds:
        return "nothing was sent"
    tokens = sum(sample.tokens for sample in samples)
    return f"{len(samples) / seconds:.1f} requests/s, {tokens / seconds:.1f} tokens/s, over {seconds:.1f} s"


def lateness(samples: Sequence[Sample]) -> str | None:
    """Return a warning if users were busy when requests were due; None if not."""
    late = [sample for sample in samples if sample.late_s > LATE_S]
    if not late:
        return None
    share = len(late) / len(samples)
    return (
        f"{share:.0%} of the requests were sent over {LATE_S * 1e3:.0f} ms after they were due, as all users were "
        f"waiting for answers (worst {max(s.late_s for s in late):.1f} s): give more users to keep the rate."
    )


def faults(samples: Sequence[Sample]) -> list[tuple[int, str]]:
    """Return the faults, most frequent first."""
    counted = Counter(f"{sample.route}: {sample.fault}" for sample in samples if sample.fault is not None)
    return [(count, fault) for fault, count in counted.most_common()]


def table(samples: Sequence[Sample]) -> str:
    """Format `rows` for a terminal."""
    lines = [list(COLUMNS), *rows(samples)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )  # fmt: skip


def html(run: Run, samples: Sequence[Sample]) -> str:
    """Return a self-contained HTML page."""
    import jinja2

    source = TEMPLATE.read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(source).render(
        run=run,
        machine=f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        outcomes=outcomes(samples),
        rates=rates(samples),
        lateness=lateness(samples),
        faults=faults(samples),
        columns=COLUMNS,
        rows=rows(samples),
        pictures=pictures(samples),
    )  # fmt: skip


def pictures(samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """Return titles and SVGs."""
    drawn = {
        "Latency by percentile": _latencies,
        "Time to the first event by percentile": _firsts,
        "Throughput": _throughput,
        "Answers by status": _statuses,
    }
    return [(title, _svg(draw, samples)) for title, draw in drawn.items()]


def _latencies(axes: Any, samples: Sequence[Sample]) -> None:
    _percentiles(axes, samples, lambda sample: sample.seconds)
    axes.set(ylabel="seconds to the end of the answer")


def _firsts(axes: Any, samples: Sequence[Sample]) -> None:
    _percentiles(axes, samples, lambda sample: sample.first_s)
    axes.set(ylabel="seconds to the first event")


def _percentiles(axes: Any, samples: Sequence[Sample], value: Callable[[Sample], float | None]) -> None:
    """Draw a line per route, on a scale with equal distances between 90, 99 and 99.9 %."""
    for name in sorted({_name(sample) for sample in samples}):
        mine = [s for s in samples if _name(s) == name and s.outcome == "answered"]
        values = [found for sample in mine if (found := value(sample)) is not None]
        if values:
            axes.plot(100 / (100.001 - POINTS), np.percentile(values, POINTS), label=name)
    ticks = [0, 50, 90, 99, 99.9]
    axes.set(xscale="log", xlabel="percentile", ylim=(0, None))
    axes.set_xticks([100 / (100.001 - tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    _legend(axes)


def _throughput(axes: Any, samples: Sequence[Sample]) -> None:
    ends = np.array([sample.at + sample.seconds for sample in samples])
    edges = _edges(ends)
    width = edges[1] - edges[0]
    tokens = np.array([sample.tokens for sample in samples])
    axes.stairs(np.histogram(ends, edges)[0] / width, edges, label="requests/s")
    axes.set(xlabel="seconds", ylabel="requests a second", ylim=(0, None))
    right = axes.twinx()
    right.stairs(np.histogram(ends, edges, weights=tokens)[0] / width, edges, color="C1", label="tokens/s")
    right.set(ylabel="tokens a second", ylim=(0, None))
    axes.legend(handles=[*axes.patches, *right.patches], fontsize=8, loc="lower right")


def _statuses(axes: Any, samples: Sequence[Sample]) -> None:
    ends = np.array([sample.at + sample.seconds for sample in samples])
    edges = _edges(ends)
    kinds = sorted({_status(sample) for sample in samples})
    below = np.zeros(len(edges) - 1)
    for kind in kinds:
        chosen = np.array([_status(sample) == kind for sample in samples])
        counts = np.histogram(ends[chosen], edges)[0]
        axes.bar(edges[:-1], counts, width=np.diff(edges), bottom=below, align="edge", label=kind)
        below = below + counts
    axes.set(xlabel="seconds", ylabel="answers")
    _legend(axes)


def _status(sample: Sample) -> str:
    if sample.outcome == "cancelled":
        return "cancelled by the client"
    return f"{sample.status or 'no answer'}" + (" (wrong)" if sample.outcome == "wrong" else "")


def _edges(ends: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return at most 60 bins, none shorter than a second."""
    last = max(1.0, float(ends.max(initial=1.0)))
    return np.linspace(0, last, min(60, max(1, int(last))) + 1)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "nothing of it", ha="center", transform=axes.transAxes)


def _svg(draw: Callable[[Any, Sequence[Sample]], None], samples: Sequence[Sample]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    draw(figure.subplots(), samples)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
