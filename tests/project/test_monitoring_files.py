"""Dashboard, alerts and workbook name what exists, and are what Grafana, Prometheus and Azure read."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from enum import EnumType
from itertools import combinations
from typing import Any, get_args, get_type_hints

import promql_parser
import pytest
import yaml

from llama_endpoints.devtools.workbook_items import DEPLOYMENT, ENDPOINT, START_LINE
from llama_endpoints.monitoring.scrape import Scrape
from llama_endpoints.validate.rules.autoscale import ENDPOINT_METRICS, METRICS
from tests.support.boards import KEYS, Asked, alerts, busy_server, labels_of, of_alerts, of_dashboard
from tests.support.calls import get
from tests.support.in_process import logged, serving
from tests.support.paths import ROOT
from tests.support.prometheus import MONITORING

ADDED = frozenset(("instance", "job"))
"""Labels that Prometheus adds to every sample."""
QUERIES = [*of_dashboard(), *of_alerts()]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, frozenset[str]]:
    """The labels of every metric of a real server."""
    with busy_server(tmp_path_factory.mktemp("server")) as server:
        text = get(f"{server.url}/metrics", Authorization=f"Bearer {KEYS['team-a']}").text
    found: dict[str, frozenset[str]] = {"up": frozenset()}
    for sample in Scrape.parse(text, 0).samples:
        found[sample.name] = found.get(sample.name, frozenset()) | sample.labels.keys()
    return found


def selectors(expr: promql_parser.Expr) -> Iterator[promql_parser.VectorSelector]:
    """Yield all that a query selects."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(expr, visit)
    return iter(found)


def groupings(expr: str) -> set[str]:
    """Return the labels by which a query sums up or matches."""
    return {
        label.strip()
        for labels in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expr)
        for label in labels.split(",")
    }


def test_there_are_queries() -> None:
    assert len(of_dashboard()) > 20
    assert len(of_alerts()) == len({rule["alert"] for rule in alerts()}) >= 8


@pytest.mark.parametrize("asked", QUERIES, ids=lambda asked: asked.place)
def test_a_query_names_metrics_and_labels_that_exist(
    asked: Asked, exposed: Mapping[str, frozenset[str]]
) -> None:
    chosen = list(selectors(promql_parser.parse(asked.expr)))
    assert chosen
    labels = ADDED.union(*(exposed[one.name] for one in chosen))
    for one in chosen:
        assert {matcher.name for matcher in one.matchers.matchers} <= exposed[one.name] | ADDED
    assert groupings(asked.expr) <= labels
    shown = labels_of(asked.legend)
    assert shown <= (groupings(asked.expr) or labels)


def test_a_name_that_does_not_exist_is_found(exposed: Mapping[str, frozenset[str]]) -> None:
    """What the test above rests on."""
    (one,) = selectors(promql_parser.parse('sum by (x) (rate(llama_nothing{code!="1"}[5m]))'))
    assert one.name == "llama_nothing"
    assert one.name not in exposed
    assert [matcher.name for matcher in one.matchers.matchers] == ["code"]


def test_every_metric_that_grows_with_a_fault_is_watched(exposed: Mapping[str, frozenset[str]]) -> None:
    named = " ".join(asked.expr for asked in QUERIES)
    unseen = {
        name.removesuffix("_bucket")
        for name in exposed
        if name.endswith(("_total", "_bucket", "_running", "_ratio"))
    }
    unseen = {name for name in unseen if name not in named}
    assert unseen == {
        "llama_accepted_tokens_total", "llama_collected_total", "llama_collection_dropped_total", "llama_guessed_tokens_total", "llama_engine_steps_total", "llama_guard_checks_total",
        "llama_guard_seconds_total", "llama_key_blocks_total", "llama_num_sequences_running",
    }  # fmt: skip


# --- Grafana ---------------------------------------------------------------------------------------


def board() -> dict[str, Any]:
    return dict(json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8")))


def test_grafanas_own_classes_read_and_write_the_same_dashboard() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.cog.plugins import register_default_plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    read = Dashboard.from_json(board())
    written = json.loads(JSONEncoder(sort_keys=True).encode(read))
    assert lost(board(), written, "") == []
    assert written["schemaVersion"] == board()["schemaVersion"]
    assert list(outside(read, "")) == []


def outside(read: Any, place: str) -> Iterator[str]:
    """Yield where a value is none of those that Grafana's classes list."""
    if isinstance(read, list):
        for at, one in enumerate(read):
            yield from outside(one, f"{place}[{at}]")
    elif type(read).__module__.startswith("grafana_foundation_sdk"):
        hints = get_type_hints(type(read))
        for name, value in vars(read).items():
            choices = [
                one for one in (hints.get(name), *get_args(hints.get(name))) if isinstance(one, EnumType)
            ]
            if choices and value is not None and value not in [one.value for kind in choices for one in kind]:
                yield f"{place}.{name}: {value}"
            yield from outside(value, f"{place}.{name}")


def lost(given: Any, written: Any, place: str) -> list[str]:
    """Return where something of the dashboard did not come back: a misspelled or unknown field, or another type."""
    if isinstance(given, dict) and isinstance(written, dict):
        return [one for key, value in given.items() for one in lost(value, written.get(key), f"{place}.{key}")]
    if isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        return [
            one
            for at, pair in enumerate(zip(given, written, strict=True))
            for one in lost(*pair, f"{place}[{at}]")
        ]
    return [] if given == written else [place]


def test_panels_fill_rows_and_cover_none_other() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        {(x + i, y + j) for i in range(place["w"]) for j in range(place["h"])}
        for place in (panel["gridPos"] for panel in panels)
        for x, y in [(place["x"], place["y"])]
    ]
    assert not any(one & other for one, other in combinations(cells, 2))
    everywhere = set().union(*cells)
    height = 1 + max(y for _, y in everywhere)
    assert everywhere == {(x, y) for x in range(24) for y in range(height)}


# --- alerts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_waits_and_says_what_to_do(rule: Mapping[str, Any]) -> None:
    assert re.fullmatch(r"[1-9]\d*m", rule["for"])
    assert rule["labels"]["severity"] in {"critical", "warning"}
    summary, runbook = rule["annotations"]["summary"], rule["annotations"]["runbook"]
    assert len(re.findall(r"\.(?= |$)", summary)) >= 2, "what is wrong, and what to do"
    path, _, anchor = runbook.partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}
    assert anchor == rule["alert"].lower()


def test_every_alert_is_tested_to_fire_and_to_be_silent() -> None:
    tests = yaml.safe_load((MONITORING / "prometheus-alerts.test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in alerts()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


# --- Azure's workbook ------------------------------------------------------------------------------


def template() -> dict[str, Any]:
    return dict(json.loads((MONITORING / "azure-workbook.json").read_text(encoding="utf-8")))


def items(kind: str) -> list[dict[str, Any]]:
    """Return the contents of the workbook's items of a kind, by the kind's version."""
    return [
        item["content"]
        for item in template()["variables"]["workbook"]["items"]
        if item["content"].get("version", "").startswith(kind)
    ]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from strings(one)


def test_the_workbook_shows_metrics_that_azure_monitor_has() -> None:
    known = {
        ENDPOINT: (ENDPOINT_METRICS, {"deployment", "statusCodeClass"}),
        DEPLOYMENT: (METRICS, {"State", "disk"}),
    }
    charts = items("MetricsItem")
    assert len(charts) >= 8
    for chart in charts:
        metrics, dimensions = known[chart["resourceType"]]
        for one in chart["metrics"]:
            namespace, category, name = one["metric"].split("-")
            assert namespace == one["namespace"] == chart["resourceType"]
            assert category == (
                "Resource" if name.endswith(("Percentage", "Utilization", "Capacity")) else "Traffic"
            )
            assert name in metrics
            assert one["splitBy"] is None or one["splitBy"] in dimensions


def test_the_workbook_names_parameters_that_it_has() -> None:
    (parameters,) = items("KqlParameterItem")
    names = {one["name"] for one in parameters["parameters"]}
    shown = [*items("KqlItem"), *items("MetricsItem")]
    used = {name for text in strings([parameters, shown]) for name in re.findall(r"\{(\w+)(?::\w+)?\}", text)}
    assert used | {"TimeRange"} == names
    assert {one["timeContextFromParameter"] for one in shown} == {"TimeRange"}


def test_no_text_of_the_workbook_is_an_expression_of_the_template() -> None:
    found = template()
    assert not [text for text in strings(found["variables"]) if text.startswith("[")]
    (resource,) = found["resources"]
    assert resource["properties"]["serializedData"] == "[string(variables('workbook'))]"


def test_the_workbook_finds_the_line_of_a_start() -> None:
    with logged() as log, serving():
        lines = [record.getMessage() for record in log]
    assert sum(bool(re.search(START_LINE, line)) for line in lines) == 1
    assert any(f"@'{START_LINE}'" in one["query"] for one in items("KqlItem"))


def test_the_workbook_names_attributes_that_spans_have() -> None:
    source = (ROOT / "score/llama_serving/server/tracing.py").read_text(encoding="utf-8")
    named = {
        name for one in items("KqlItem") for name in re.findall(r"customDimensions\['(.*?)'\]", one["query"])
    }
    assert len(named) >= 5
    assert {name for name in named if f'"{name}"' not in source} == set()
