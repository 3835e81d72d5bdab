"""What the server makes of a trusted proxy's headers, and of a path prefix."""

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llama_serving.errors import SetupError
from llama_serving.server.fronts.path_prefix import check_prefix
from llama_serving.server.middleware import NAMED, PROBES
from tests.conftest import post
from tests.support.calls import get, until
from tests.support.carriers import carried
from tests.support.in_process import LocalServer, logged, serving

HEADERS = {
    "X-Forwarded-For": "198.51.100.1, 203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "models.example.org",
    "Forwarded": "for=198.51.100.2;proto=https;host=evil.example",
}


def clients(lines: list[logging.LogRecord]) -> list[str]:
    return [line.fields["client"] for line in lines if hasattr(line, "fields")]


@pytest.mark.parametrize(
    ("trusted", "client", "servers"),
    [
        ("", "127.0.0.1", None),
        ("10.0.0.0/8,::1,unix", "127.0.0.1", None),
        ("127.0.0.0/8", "203.0.113.9", [{"url": "https://models.example.org"}]),
    ],
)
def test_the_headers_of_a_trusted_peer_alone(trusted: str, client: str, servers: object) -> None:
    with logged() as lines, serving({"LLAMA_TRUSTED_PROXIES": trusted}) as server:
        headers = {name.replace("-", "_"): value for name, value in HEADERS.items()}
        assert get(f"{server.url}/openapi.json", **headers).json.get("servers") == servers
        until(lambda: clients(lines) == [client])  # (it is logged behind the answer)


@pytest.mark.parametrize(("trusted", "client"), [("127.0.0.1", "203.0.113.9"), ("127.0.0.2", "127.0.0.1")])
def test_the_audit_has_the_client(tmp_path: Path, trusted: str, client: str) -> None:
    audit = tmp_path / "audit.jsonl"
    with serving({"LLAMA_TRUSTED_PROXIES": trusted, "LLAMA_AUDIT": str(audit)}) as server:
        headers = {name.replace("-", "_"): value for name, value in HEADERS.items()}
        post(f"{server.url}/v1/completions", {"prompt": "a", "max_tokens": 1}, **headers)
    assert [json.loads(line)["client"] for line in audit.read_text().splitlines()] == [client]


def test_a_proxy_on_a_unix_socket(tmp_path: Path) -> None:
    with (
        logged() as lines,
        carried("unix", tmp_path, LLAMA_TRUSTED_PROXIES="unix") as own,
        own.client() as client,
    ):
        client.get("/version", headers=HEADERS)
        client.get("/version")
        until(lambda: clients(lines) == ["203.0.113.9", "unix"])


@pytest.fixture(scope="module")
def prefixed() -> Iterator[LocalServer]:
    with serving({"LLAMA_PATH_PREFIX": "/a/llama/", "LLAMA_TRUSTED_PROXIES": "127.0.0.1"}) as server:
        yield server


def test_every_route_exists_with_and_without_the_prefix(prefixed: LocalServer) -> None:
    """A proxy strips it or not; probes come without a proxy. (A POST without a body says by its status what is there.)"""
    routes = {path for path in NAMED | PROBES if path != "/"} | {
        "/v1/models/nano",
        "/v1/models/other",
        "/nowhere",
    }
    for path in sorted(routes):
        answers = [get(f"{prefixed.url}{prefix}{path}") for prefix in ("/a/llama", "")]
        assert answers[0].status == answers[1].status, path
        assert answers[0].status in (200, 404, 405)
        if path not in ("/metrics", "/openapi.json"):
            assert strip_ids(answers[0].text) == strip_ids(answers[1].text)


def strip_ids(text: str) -> str:
    return text.partition('"request_id"')[0]


@pytest.mark.parametrize(
    "path", ["/a", "/a/llamas/version", "/a/llama/a/llama/version", "//a/llama/version", "/A/llama/version"]
)
def test_other_paths_are_not_there(prefixed: LocalServer, path: str) -> None:
    assert get(f"{prefixed.url}{path}").status == 404


@pytest.mark.parametrize("path", ["/a/llama", "/a/llama/", "/"])
def test_the_page_is_at_the_prefix(prefixed: LocalServer, path: str) -> None:
    answer = get(f"{prefixed.url}{path}", Accept="text/html")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")


def test_the_prefix_is_no_way_around_the_keys() -> None:
    with serving({"LLAMA_PATH_PREFIX": "/llama", "LLAMA_API_KEYS": "key"}) as server:
        for path in sorted(NAMED - PROBES - {"/"}):
            assert get(f"{server.url}/llama{path}").status == 401, path
        for path in PROBES:
            assert get(f"{server.url}/llama{path}").status == 200


def test_escapes_and_absolute_targets_have_the_prefix_too(prefixed: LocalServer) -> None:
    place = urlsplit(prefixed.url)
    with socket.create_connection((place.hostname or "", place.port or 0), 60) as connection:
        connection.sendall(b"GET http://x/a/llama/version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert get(f"{prefixed.url}/%61/llama/version").status == 200
    assert get(f"{prefixed.url}/a/llama/v1/models/n%61no").status == 200


def test_openapi_tells_the_prefix(prefixed: LocalServer) -> None:
    assert get(f"{prefixed.url}/openapi.json").json["servers"] == [{"url": "/a/llama"}]
    told = get(f"{prefixed.url}/a/llama/openapi.json", X_Forwarded_Host="[::1]:8443", X_Forwarded_Proto="https")
    assert told.json["servers"] == [{"url": "https://[::1]:8443/a/llama"}]


@pytest.mark.parametrize("prefix", ["/v1", "/api", "/models", "/score", "/health/live", "/openapi.json"])
def test_a_prefix_of_own_paths_is_refused(prefix: str) -> None:
    with pytest.raises(SetupError, match=rf"LLAMA_PATH_PREFIX={prefix} can't be used: .* such as /"):
        check_prefix(prefix)


@pytest.mark.parametrize("prefix", ["", "/v", "/v12", "/api/llama", "/llama"])
def test_other_prefixes_are_not(prefix: str) -> None:
    check_prefix(prefix)
