"""The pictures of dashboard and `top` in docs/pictures: a minute of load, read by the real Prometheus.

After a change of either: `python -m tests.support.board_pictures`. It needs Debian's package `prometheus`.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from llama_endpoints.devtools.grafana import dashboard
from llama_endpoints.devtools.panels import Panel
from llama_endpoints.devtools.servers import own_server
from llama_endpoints.monitoring.client import MetricsClient
from llama_endpoints.monitoring.monitor import Monitor
from llama_endpoints.monitoring.screen import Screen
from tests.conftest import post
from tests.support.boards import GUARDS, KEYS, filled, labels_of, panels
from tests.support.paths import ROOT
from tests.support.prometheus import Prometheus, prometheus

PICTURES: Final = ROOT / "docs" / "pictures"
SECONDS: Final = 60
USERS: Final = {"team-a": 10, "nightly": 4}
ENV: Final = {"LLAMA_MAX_NUM_SEQS": "8", "LLAMA_KV_MEMORY": "6MiB"}
"""Few places and little memory, so that requests wait and sequences are preempted."""
WORKLOAD: Final = {
    "prompt_characters": {"least": 100, "most": 1200}, "new_tokens": {"least": 16, "most": 160}, "prompts": {"least": 1, "most": 2},
    "requests_per_second": None, "kinds": {"completion": 3, "infill": 1, "dialog": 1}, "stream": 0.5, "cancel": 0.05, "bad": 0.05,
}  # fmt: skip
UNITS: Final = {"percentunit": lambda value, _: f"{value:.0%}", "s": lambda value, _: f"{value:g} s"}
COLUMNS: Final = 100


@contextmanager
def loaded(folder: Path, url: str) -> Iterator[None]:
    """Load a server for a minute, with two keys, and with a prompt that the guard blocks now and then."""
    workload = folder / "workload.yml"
    workload.write_text(json.dumps(WORKLOAD))
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "load_tests.run", "--url", url, "--users", str(users), "--seconds", str(SECONDS),
             "--workload", str(workload), "--output", str(folder / name)],
            cwd=ROOT, env={**os.environ, "LOAD_KEY": KEYS[name]}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for name, users in USERS.items()
    ]  # fmt: skip
    yield
    while any(run.poll() is None for run in runs):
        body = {"prompt": "# project falcon\n", "max_tokens": 4}
        post(f"{url}/v1/completions", body, Authorization=f"Bearer {KEYS['nightly']}")
        time.sleep(3)


def photograph_top(url: str, path: Path) -> None:
    """Draw the screen of `top`."""
    console = Console(
        file=StringIO(), force_terminal=True, record=True, highlight=False, width=COLUMNS, height=40
    )
    with closing(MetricsClient(url, KEYS["team-a"], key_name="")) as client:
        monitor = Monitor(client)
        monitor.first()
        time.sleep(4)
        console.print(Screen(monitor.again(), None, 2))
    title = f"llama-endpoints top {url}"
    drawn = console.export_svg(title=title, theme=SVG_EXPORT_THEME, unique_id="top")
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL))  # no requests to other hosts


def draw(reading: Prometheus, start: float, end: float, path: Path) -> None:
    """Draw every panel where the dashboard has it, from Prometheus' answers."""
    placed = {panel["title"]: panel["gridPos"] for panel in dashboard()["panels"]}
    height = max(place["y"] + place["h"] for place in placed.values())
    figure = Figure(figsize=(15, height * 0.36))
    for panel in panels():
        place = placed[panel.title]
        left, bottom = place["x"] / 24 + 0.035, 1 - (place["y"] + place["h"] - 1.1) / height
        axes = figure.add_axes((left, bottom, place["w"] / 24 - 0.05, (place["h"] - 2.2) / height))
        axes.set_title(panel.title, fontsize=9, loc="left", fontweight="bold")
        {"timeseries": _lines, "stat": _numbers, "table": _table}[panel.kind](axes, panel, reading, start, end)
    for row in dashboard()["panels"]:
        if row["type"] == "row":
            figure.text(0.012, 1 - (row["gridPos"]["y"] + 0.75) / height, row["title"], fontsize=11)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=80)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def _lines(axes: Any, panel: Panel, reading: Prometheus, start: float, end: float) -> None:
    for query in panel.queries:
        for series in reading.range(filled(query.expr, interval="12s"), start, end, 1):
            times = [moment - start for moment, _ in series["values"]]
            axes.plot(
                times,
                [float(value) for _, value in series["values"]],
                lw=1.2,
                label=_name(query.legend, series),
            )
    axes.margins(x=0.02, y=0.2)  # (the legend stands at the top)
    axes.set_ylim(bottom=0, top=None if panel.most is None else panel.most * 1.2)
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, alpha=0.25)
    if panel.unit in UNITS:
        axes.yaxis.set_major_formatter(FuncFormatter(UNITS[panel.unit]))
    axes.legend(fontsize=7, loc="upper left", ncols=3, framealpha=0.6)


def _name(legend: str, series: dict[str, Any]) -> str:
    for label in labels_of(legend):
        legend = legend.replace(f"{{{{{label}}}}}", series["metric"][label])
    return legend


def _numbers(axes: Any, panel: Panel, reading: Prometheus, start: float, end: float) -> None:
    del start
    shown = []
    for query in panel.queries:
        (series,) = reading.range(filled(query.expr, interval="30s"), end - 20, end - 20, 1)
        value = float(series["values"][-1][1])
        shown.append(f"{value:.1%}" if panel.unit == "percentunit" else f"{value:,.3g} {query.legend}")
    axes.text(0.02, 0.35, "\n".join(shown), fontsize=12)
    axes.axis("off")


def _table(axes: Any, panel: Panel, reading: Prometheus, start: float, end: float) -> None:
    del start, end
    (series,) = reading.instant(filled(panel.queries[0].expr))
    labels = ("model", "engine", "backend")
    axes.text(0.02, 0.15, "\n".join(f"{label}: {series['metric'][label]}" for label in labels), fontsize=8)
    axes.axis("off")


if __name__ == "__main__":
    pictures = Path(sys.argv[1]) if sys.argv[1:] else PICTURES
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, content in (
            ("keys.json", [{"name": name, "key": key} for name, key in KEYS.items()]),
            ("guards.json", GUARDS),
        ):
            (work / name).write_text(json.dumps(content))
        env = {**ENV, "LLAMA_NAMED_KEYS": str(work / "keys.json"), "LLAMA_GUARDS": str(work / "guards.json")}
        server = stack.enter_context(own_server("nano", env=env))
        asked = stack.enter_context(prometheus(work, [server.url], key=KEYS["team-a"], interval="2s"))
        began = time.time()
        with loaded(work, server.url):
            time.sleep(SECONDS / 2)
            photograph_top(server.url, pictures / "top.svg")
        draw(asked, began, time.time(), pictures / "dashboard.png")
