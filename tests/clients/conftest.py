"""Clients that others wrote, from `.venv-clients` (`make clients`); without it these tests skip."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from llama_endpoints.devtools.servers import RunningServer, azmlinfsrv, own_server
from tests.conftest import ROOT, post

HERE: Final = Path(__file__).parent
BIN: Final = ROOT / ".venv-clients" / "bin"
TIMEOUT_S: Final = 120
KEY: Final = "sesame"
OF_A_CLIENT: Final = ("OPENAI_", "AZURE", "LITELLM_", "LLM_", "LANG", "LLAMA_", "PYTEST_")
"""How the variables begin that would change what a client does."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (BIN.parent / ".ready").exists():
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason="no clients are installed: run `make clients` where the package index can be reached"))  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What every client asks: a dialog of two turns and a text to complete, greedily."""

    messages: tuple[dict[str, str], ...] = (
        {"role": "system", "content": "Answer in one line."},
        {"role": "user", "content": "Reverse a list 🦙"},
        {"role": "assistant", "content": "a[::-1]"},
        {"role": "user", "content": "Write a test of it"},
    )
    prompt: str = "def f(x):\n    return"
    max_tokens: int = 12

    @property
    def limits(self) -> dict[str, Any]:
        """The parameters, in OpenAI's words."""
        return {"max_tokens": self.max_tokens, "temperature": 0}


@dataclass(frozen=True)
class Expected:
    """What the server says to plain requests: every client must show the same."""

    url: str
    question: Question = field(default_factory=Question)

    @property
    def chat(self) -> str:
        """To the whole dialog."""
        return self.of(*self.question.messages)

    @property
    def first(self) -> str:
        """To its first turn."""
        return self.of(*self.question.messages[:2])

    @property
    def second(self) -> str:
        """To its second turn behind the server's own answer to the first."""
        first, last = self.question.messages[:2], self.question.messages[-1]
        return self.of(*first, {"role": "assistant", "content": self.first}, last)

    @property
    def single(self) -> str:
        """To the text to complete, as a dialog of one message."""
        return self.of({"role": "user", "content": self.question.prompt})

    @property
    def completion(self) -> str:
        return self.completion_of(self.question.prompt)

    def of(self, *messages: dict[str, str]) -> str:
        body = {"messages": list(messages), **self.question.limits}
        answer = post(f"{self.url}/v1/chat/completions", body, api_key=KEY)
        return str(answer.json["choices"][0]["message"]["content"])

    def completion_of(self, prompt: str) -> str:
        body = {"prompt": prompt, **self.question.limits}
        return str(post(f"{self.url}/v1/completions", body, api_key=KEY).json["choices"][0]["text"])


@pytest.fixture(scope="session")
def keyed() -> Iterator[RunningServer]:
    """Our own server, which wants a key."""
    with own_server("nano", env={"LLAMA_API_KEYS": KEY}) as server:
        yield server


@pytest.fixture(scope="session")
def azure(nano_model: Path) -> Iterator[RunningServer]:
    """Azure's server on score.py. It checks no key: on Azure the endpoint's front does."""
    with azmlinfsrv(nano_model, score=ROOT / "score") as server:
        yield server


@pytest.fixture(scope="session")
def expected(keyed: RunningServer) -> Expected:
    """See `Expected`. An empty text would tell nothing apart."""
    made = Expected(keyed.url)
    texts = (made.chat, made.first, made.second, made.completion)
    assert all(text.strip() for text in texts)
    assert len(set(texts)) == len(texts)
    return made


Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command of the clients' environment in an empty folder, and returns what it prints."""

    def running(command: str, *arguments: str, **variables: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_CLIENT)}
        done = subprocess.run(
            [BIN / command, *arguments],
            cwd=tmp_path,
            env={**kept, "HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "true", **variables},
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return running


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(run: Run) -> Ask:
    """Runs one of the programs beside this against a server, and returns what it tells."""

    def asking(program: str, server: RunningServer, **more: Any) -> dict[str, Any]:
        question = Question()
        asked = {
            "url": server.url,
            "key": KEY,
            "messages": question.messages,
            "prompt": question.prompt,
            "max_tokens": question.max_tokens,
            **more,
        }
        printed = run("python", str(HERE / "programs" / f"{program}.py"), json.dumps(asked))
        told: dict[str, Any] = json.loads(printed.rstrip("\n").rpartition("\n")[2])
        return told

    return asking
