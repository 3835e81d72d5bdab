"""The dashboard's queries, the alerts, and a server that has every metric they name."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llama_endpoints.devtools.panels import BOARD, ROUTES, Panel
from tests.conftest import post
from tests.support.in_process import LocalServer, serving
from tests.support.prometheus import MONITORING

KEYS = {"team-a": "sesame", "nightly": "mellon"}
PROMPTS = ({"prompt": "def f("}, {"prompt": "project falcon"}, {"prompt": "def f(", "temperature": 9})
"""One is answered, one is blocked, and one is refused."""
ASKED = len(KEYS) * len(PROMPTS)
GUARDS = {"guards": [{"type": "rules", "deny": ["project falcon"]}]}


@dataclass(frozen=True, slots=True)
class Asked:
    """A query of the dashboard or of an alert, and where it stands."""

    place: str
    expr: str
    legend: str = ""


def panels() -> list[Panel]:
    """Return all panels."""
    return [panel for section in BOARD for panel in section.panels]


def filled(expr: str, *, interval: str = "5s", instance: str = ".*") -> str:
    """Return a query with Grafana's variables replaced."""
    for name, value in {"__rate_interval": interval, "instance": instance, "routes": ROUTES}.items():
        expr = expr.replace(f"${name}", value)
    return expr


def of_dashboard() -> list[Asked]:
    """Return the queries that Grafana's file has."""
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
    return [
        Asked(panel["title"], filled(target["expr"]), target["legendFormat"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]


def alerts() -> list[Mapping[str, Any]]:
    """Return the rules of all alerts."""
    rules = yaml.safe_load((MONITORING / "prometheus-alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in rules["groups"] for rule in group["rules"]]


def of_alerts() -> list[Asked]:
    """Return the queries of all alerts."""
    return [Asked(rule["alert"], rule["expr"]) for rule in alerts()]


def labels_of(legend: str) -> set[str]:
    """Return the labels that a legend shows."""
    return set(re.findall(r"{{(\w+)}}", legend))


@contextmanager
def busy_server(folder: Path) -> Iterator[LocalServer]:
    """Run a server with keys and a guard, which has answered, blocked and refused."""
    keys, guards = folder / "keys.json", folder / "guards.json"
    keys.write_text(json.dumps([{"name": name, "key": key} for name, key in KEYS.items()]))
    guards.write_text(json.dumps(GUARDS))
    with serving({"LLAMA_NAMED_KEYS": str(keys), "LLAMA_GUARDS": str(guards)}) as server:
        ask_around(server.url)
        yield server


def ask_around(url: str) -> None:
    """Send each kind of request that the dashboard tells apart."""
    for key in KEYS.values():
        for prompt in PROMPTS:
            body = {"max_tokens": 4, "ignore_eos": True, **prompt}
            status = post(f"{url}/v1/completions", body, Authorization=f"Bearer {key}").status
            assert status == (200 if prompt == PROMPTS[0] else 400)
