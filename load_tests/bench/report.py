"""The samples as a table, a JSON file and a chart."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from load_tests.bench.contestants import ENGINE
from load_tests.bench.measure import Sample, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def table(samples: Sequence[Sample], limits: dict[int, float]) -> str:
    """Return one line per contestant: tokens a second at each number of clients, and our engine's rate relative to it."""
    clients = sorted({sample.clients for sample in samples})
    names = list(dict.fromkeys(sample.contestant for sample in samples))
    width = max(map(len, (*names, "limit: weights and cache, read once a step")))
    head = "  ".join(f"{f'{n} clients' if n > 1 else '1 client':>18}" for n in clients)
    lines = [f"{'tokens/s (our engine by it)':{width}}  {head}"]
    for name in names:
        cells = []
        for count in clients:
            rates = [s.rate for s in samples if (s.contestant, s.clients) == (name, count)]
            times = ratio(samples, ENGINE, name, count)
            cells.append(f"{median(rates):9.1f} ({times:6.2f})" if rates and times else f"{'–':>18}")
        lines.append(f"{name:{width}}  " + "  ".join(f"{cell:>18}" for cell in cells))
    cells = [f"{limits[count]:9.1f} {'':8}" for count in clients]
    lines.append(
        f"{'limit: weights and cache, read once a step':{width}}  " + "  ".join(f"{c:>18}" for c in cells)
    )
    return "\n".join(lines)


def write(folder: Path, samples: Sequence[Sample], limits: dict[int, float], others: dict[str, Any]) -> None:
    """Write `bench.json` with every sample, and `bench.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        },
        "samples": [asdict(sample) | {"tokens_per_second": sample.rate} for sample in samples],
        "limits": limits,
        **others,
    }
    (folder / "bench.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    _draw(folder / "bench.png", samples, limits)


def _draw(path: Path, samples: Sequence[Sample], limits: dict[int, float]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in dict.fromkeys(sample.contestant for sample in samples):
        mine = [sample for sample in samples if sample.contestant == name]
        counts = sorted({sample.clients for sample in mine})
        rates = [median(s.rate for s in mine if s.clients == count) for count in counts]
        axes.plot(counts, rates, marker="o", label=name)
        axes.scatter([s.clients for s in mine], [s.rate for s in mine], s=8, alpha=0.4)
    axes.plot(list(limits), list(limits.values()), linestyle=":", color="0.4", label="limit of the memory")
    axes.set(xscale="log", yscale="log", xlabel="clients", ylabel="tokens a second")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
