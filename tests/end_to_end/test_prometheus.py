"""The real Prometheus and promtool, on the files of monitoring/ and a real server."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from llama_endpoints.devtools.panels import Panel
from tests.support.boards import ASKED, KEYS, alerts, ask_around, busy_server, filled, panels
from tests.support.calls import until
from tests.support.in_process import LocalServer
from tests.support.prometheus import MISSING, MONITORING, PROMETHEUS, PROMTOOL, Prometheus, prometheus

pytestmark = pytest.mark.skipif(PROMETHEUS is None or PROMTOOL is None, reason=MISSING)


@pytest.mark.parametrize(
    "words",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint=all", "--lint-fatal", "prometheus-alerts.yml"),
        ("test", "rules", "prometheus-alerts.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(words: tuple[str, ...]) -> None:
    done = subprocess.run([str(PROMTOOL), *words], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with busy_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="module")
def reading(server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has read the server before and after some requests."""
    with prometheus(tmp_path_factory.mktemp("prometheus"), [server.url], key=KEYS["nightly"]) as started:

        def counted() -> set[float]:
            """Requests that Prometheus knows of, as the middleware and as the accounts count them."""
            sums = ('sum(llama_requests_total{route="/v1/completions"})', "sum(llama_key_requests_total)")
            return {float(one["value"][1]) for expr in sums for one in started.instant(expr)}

        until(lambda: counted() == {ASKED})
        ask_around(server.url)
        until(lambda: counted() == {2 * ASKED})
        yield started


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel.title)
def test_every_panel_shows_something(panel: Panel, reading: Prometheus) -> None:
    now = time.time()
    for query in panel.queries:
        expr = filled(query.expr, interval="30s")
        assert reading.instant(expr), "an instant query, as a stat asks it"
        series = reading.range(expr, now - 10, now, 0.5)
        assert series, "a query over time, as a graph asks it"


def test_the_numbers_are_the_servers(reading: Prometheus) -> None:
    (ready,) = reading.instant("llama_ready")
    assert (ready["value"][1], ready["metric"]["job"]) == ("1", "llama-endpoints")
    by_key = {one["metric"]["key"]: one["value"][1] for one in reading.instant("llama_key_requests_total")}
    assert by_key == dict.fromkeys(KEYS, str(ASKED))


def test_the_alerts_are_loaded_and_a_healthy_server_raises_none(reading: Prometheus) -> None:
    groups = reading.ask("rules", type="alert").json["data"]["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert rules.keys() == {rule["alert"] for rule in alerts()}
    assert {rule["health"] for rule in rules.values()} <= {"ok", "unknown"}
    assert [name for name, rule in rules.items() if rule["state"] == "firing"] == []


def test_a_query_that_is_wrong_is_refused(reading: Prometheus) -> None:
    """What the tests above rest on."""
    assert reading.ask("query", query="sum by (").status == 400
    assert reading.instant("llama_nothing") == []
