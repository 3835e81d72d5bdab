"""Our own clients of a server with TLS by an authority of its own, below a path prefix."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_endpoints.evaluation.targets.endpoint_client import http_client
from llama_serving.errors import SetupError
from llama_serving.settings import Settings
from llama_serving.trust import BUNDLES, trusted_certificates
from tests.conftest import post
from tests.support import command
from tests.support.carriers import Carried, carried
from tests.support.in_process import load_nano, serving

PREFIX = "/models/llama"
PROBLEM = {
    "task_id": "T/0",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "test": "def check(candidate):\n    pass\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Carried]:
    with carried("tls", folder, LLAMA_PATH_PREFIX=PREFIX) as started:
        yield started


@pytest.fixture(autouse=True)
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BUNDLES:
        monkeypatch.delenv(name, raising=False)


def chat(server: Carried, **env: str) -> command.Done:
    url, parameters = server.server.url + PREFIX, json.dumps({"temperature": 0, "max_tokens": 4})
    return command.run("chat", "--url", url, "--parameters", parameters, stdin=b"hello\n", env=env)


def evaluate(server: Carried, output: Path, **env: str) -> command.Done:
    data = output.with_suffix(".jsonl")
    data.write_text(json.dumps(PROBLEM) + "\n")
    words = (
        "evaluate",
        "humaneval",
        "--data",
        data,
        "--output",
        output,
        "--max-new-tokens",
        "4",
        "--prompt",
        "completion",
    )
    url = f"{server.server.url}{PREFIX}/v1/completions"
    return command.run(*words, "--url", url, "--protocol", "completions", env=env)


def top(server: Carried, **env: str) -> command.Done:
    return command.run("top", server.server.url + PREFIX, "--once", "--json", env=env)


@pytest.mark.parametrize("variable", BUNDLES)
def test_chat(server: Carried, folder: Path, variable: str) -> None:
    done = chat(server, **{variable: str(folder / "ca.crt")})
    assert (done.returncode, done.stdout.strip() != "") == (0, True), done.stderr


def test_evaluate(server: Carried, folder: Path, tmp_path: Path) -> None:
    done = evaluate(server, tmp_path / "e", REQUESTS_CA_BUNDLE=str(folder / "ca.crt"))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "e" / "samples.jsonl").read_text().splitlines()) == 1


def test_top(server: Carried, folder: Path) -> None:
    done = top(server, REQUESTS_CA_BUNDLE=str(folder / "ca.crt"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_an_unknown_authority_is_told_at_once_with_the_way_out(server: Carried, tmp_path: Path) -> None:
    for done in (chat(server), evaluate(server, tmp_path / "e"), top(server)):
        assert done.returncode == 2
        assert "its certificate is not trusted" in done.stderr
        assert "REQUESTS_CA_BUNDLE" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_upstream(server: Carried, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"LLAMA_ENGINE": "upstream", "LLAMA_UPSTREAM_URL": server.server.url + PREFIX}
    with pytest.raises(SetupError, match=r"its certificate is not trusted .* REQUESTS_CA_BUNDLE"):
        load_nano(Settings.from_environment(env))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "ca.crt"))
    with serving(env) as front, server.client() as direct:
        body = {"prompt": "def f(x):", "max_tokens": 4, "temperature": 0}
        expected = direct.post("/v1/completions", json=body).json()["choices"]
        assert post(f"{front.url}/v1/completions", body).json["choices"] == expected


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("content", [None, "", "rubbish"])
def test_a_bundle_that_cant_be_used_is_a_sentence(
    tmp_path: Path, name: str, content: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "ca.crt"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv(name, str(bundle))
    with pytest.raises(SetupError, match=f"{name}=.*ca.crt can't be used"):
        trusted_certificates("https://localhost")


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_that_cant_be_used_stops_nobody_without_tls(tmp_path: Path, name: str) -> None:
    with carried("tcp", tmp_path) as plain, pytest.MonkeyPatch.context() as patch:
        gone = str(tmp_path / "gone.crt")
        url = plain.server.url
        done = command.run("chat", "--url", url, stdin=b"hello\n", env={name: gone})
        assert done.returncode == 0, done.stderr
        assert command.run("top", url, "--once", env={name: gone}).returncode == 0
        patch.setenv(name, gone)
        http_client(url, None, None).close()
        with serving({"LLAMA_ENGINE": "upstream", "LLAMA_UPSTREAM_URL": url}) as front:
            body = {"prompt": "def f(x):", "max_tokens": 2}
            assert post(f"{front.url}/v1/completions", body).status == 200
