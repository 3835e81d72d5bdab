"""Guards under the stock servers, as processes: azmlinfsrv and `mlflow models serve`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.devtools.servers import RunningServer, azmlinfsrv, mlflow_serve
from tests.conftest import Answer, post
from tests.support.paths import ROOT

JUDGE = """
import time

def judge(stage, text):
    if "DOWN" in text:
        raise ConnectionError(text)
    if "SLOW" in text:
        time.sleep(60)
    return "a secret reason" if "FORBIDDEN" in text else None
"""
GUARDS = r"""
guards:
  - {type: callable, name: judge, callable: "judges:judge", stages: [prompt], timeout_s: 0.5}
  - {type: rules, stages: [text], patterns: {returns: '\breturn\b'}}
  - {type: rules, name: notes, action: annotate, stages: [text], patterns: {imports: '\bimport\b'}}
"""
SUM, IMPORTS = "def add(a, b):\n", "import os\nimport "
"""Prompts after which the embedded model writes `return`, and `import`."""


@dataclass(frozen=True)
class Host:
    """A stock server with guards."""

    name: str
    server: RunningServer

    def ask(self, *prompts: str, **more: Any) -> Answer:
        """Send prompts in the server's own shape."""
        body = {"input_string": list(prompts), "parameters": {"max_new_tokens": 24, "do_sample": False, **more}}
        if self.name == "azmlinfsrv":
            return post(f"{self.server.url}/score", {"input_data": body})
        return post(f"{self.server.url}/invocations", {"inputs": body})

    def rows(self, answer: Answer) -> Any:
        """The rows of an answer."""
        assert answer.status == 200, answer.text
        return answer.json if self.name == "azmlinfsrv" else answer.json["predictions"]


def started(name: str, model: Path, env: dict[str, str]) -> AbstractContextManager[RunningServer]:
    if name == "azmlinfsrv":
        return azmlinfsrv(model, score=ROOT / "score", env=env)
    return mlflow_serve(model, env=env)


@pytest.fixture(scope="module", params=["azmlinfsrv", "mlflow"])
def host(
    request: pytest.FixtureRequest, nano_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("guards")
    (folder / "judges.py").write_text(JUDGE)
    (folder / "guards.yml").write_text(GUARDS)
    env = {"LLAMA_GUARDS": str(folder / "guards.yml"), "PYTHONPATH": str(folder)}
    with started(request.param, nano_model, env) as server:
        yield Host(request.param, server)


def error(answer: Answer) -> dict[str, Any]:
    """The error of an answer without what differs from one to the next."""
    found = dict(answer.json["error"])
    assert answer.json.keys() == {"error"}
    assert found.pop("request_id")
    return found


def test_a_blocked_prompt(host: Host) -> None:
    answer = host.ask("x = 1", "FORBIDDEN")
    root = "input_data" if host.name == "azmlinfsrv" else "inputs"
    assert (answer.status, error(answer)) == (
        400,
        {
            "code": "content_filter",
            "message": "The prompt was blocked by the content filter: `judge`. Change the prompt.",
            "param": f"{root}.input_string[1]",
            "index": 1,
        },
    )


@pytest.mark.parametrize("prompt", ["DOWN", "SLOW"])
def test_a_guard_that_is_down_or_slow(host: Host, prompt: str) -> None:
    """MLflow's server passes no headers on, so the time is in the body too."""
    answer = host.ask(prompt)
    found = error(answer)
    again = found.pop("retry_after")
    assert (answer.status, found["code"]) == (503, "guard_unavailable")
    assert (
        found["message"]
        == f"The guard `judge` could not check this request, so nothing was sent. Try again in {again} s."
    )
    assert answer.headers.get("Retry-After") == (str(again) if host.name == "azmlinfsrv" else None)
    assert prompt not in answer.text


def test_a_text_that_is_blocked_at_its_end(host: Host) -> None:
    """It is empty, its reason is told unasked, and the other row of the request is whole."""
    blocked, whole = host.rows(host.ask(SUM, IMPORTS))
    assert blocked["0"] == ""
    (details,) = blocked["details"]
    assert details["finish_reason"] == "content_filter"
    assert details["content_filter_results"]["returns"]["filtered"] is True
    assert "import" in whole["0"]
    (noted,) = whole["details"]
    assert noted["finish_reason"] == "length"
    assert noted["content_filter_results"]["imports"]["filtered"] is False


def test_what_no_guard_minds(host: Host) -> None:
    (row,) = host.rows(host.ask("x = 1\n", max_new_tokens=2))
    assert row.keys() == {"0"}


def test_openais_body_at_mlflow(host: Host) -> None:
    if host.name != "mlflow":
        pytest.skip("/score takes Azure's body alone")
    url, body = f"{host.server.url}/invocations", {"max_tokens": 24, "temperature": 0}
    answer = post(url, {"prompt": SUM, **body})
    (choice,) = answer.json["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "content_filter")
    assert post(url, {"prompt": "FORBIDDEN", **body}).json["error"]["code"] == "content_filter"


def test_the_log_has_no_text(host: Host) -> None:
    host.ask("DOWN hidden-in-a-prompt")
    host.ask("FORBIDDEN hidden-in-a-prompt")
    log = host.server.log.read_text(encoding="utf-8")
    assert "judge" in log
    assert "hidden-in-a-prompt" not in log
