"""The real Prometheus (Debian's package `prometheus`), where it is installed."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

from llama_endpoints.devtools.servers import free_port
from tests.conftest import Answer
from tests.support.calls import get, is_up, until

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
MISSING = "Prometheus is not installed: apt-get install prometheus"
MONITORING = Path(__file__).resolve().parents[2] / "monitoring"


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def ask(self, path: str, **parameters: object) -> Answer:
        """Return what its API answers, whether or not it is an error."""
        return get(f"{self.url}/api/v1/{path}?{urlencode(parameters)}")

    def instant(self, expr: str) -> list[dict[str, Any]]:
        """Return the series of a query now."""
        return list(self._data("query", query=expr)["result"])

    def range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return the series of a query over time."""
        return list(self._data("query_range", query=expr, start=start, end=end, step=step)["result"])

    def _data(self, path: str, **parameters: object) -> dict[str, Any]:
        answer = self.ask(path, **parameters)
        assert answer.status == 200, answer.text
        return dict(answer.json["data"])


@contextmanager
def prometheus(
    folder: Path, servers: Sequence[str], *, key: str | None = None, interval: str = "500ms"
) -> Iterator[Prometheus]:
    """Run Prometheus on `monitoring/prometheus.yml`, with these servers and this interval in the place of the example's."""
    assert PROMETHEUS is not None, MISSING
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {
        "scrape_interval": interval,
        "scrape_timeout": interval,
        "evaluation_interval": interval,
    }
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [urlsplit(server).netloc for server in servers]}]
    if key is not None:
        job["authorization"] = {"credentials": key}
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(config))
    port = free_port("127.0.0.1")
    command = [
        PROMETHEUS, "--config.file", str(path), "--storage.tsdb.path", str(folder / "data"), "--web.listen-address", f"127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    started = Prometheus(f"http://127.0.0.1:{port}")
    try:
        until(lambda: process.poll() is not None or is_up(started.url, "/-/ready"))
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield started
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
