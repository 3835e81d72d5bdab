"""nginx and Caddy in front of our own server, with the configuration that docs/fronts.md has."""

import json
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from llama_endpoints.devtools.servers import LOOPBACK, free_port
from tests.support.calls import PATIENCE_S, until
from tests.support.carriers import carried
from tests.support.certificates import Authority
from tests.support.in_process import logged
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "fronts.md").read_text(encoding="utf-8")
NAME = "models.example.org"
ENDLESS = {"prompt": "def f(x):", "max_tokens": 1900, "ignore_eos": True, "stream": True}


def block(language: str) -> str:
    """The page's example."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


@dataclass(frozen=True)
class Front:
    """A proxy that runs in front of a server. `log` gets the server's lines."""

    port: int
    client: httpx2.Client
    log: list[logging.LogRecord]

    def clients(self, request_id: str) -> list[str]:
        """The addresses that were logged of a request."""
        lines = [record.fields for record in self.log if hasattr(record, "fields")]
        return [line["client"] for line in lines if line["request_id"] == request_id]


def nginx(folder: Path, port: int, authority: Authority, *, strip: bool) -> list[str]:
    """Write nginx's files, and return its command."""
    cert, key = authority.pair(folder / "front", NAME, name="models")
    text = block("nginx")
    for old, new in {
        "unix:/run/llama/llama.sock": f"unix:{folder}/llama.sock",
        "X-Forwarded-Host $server_name": f"X-Forwarded-Host $server_name:{port}",
        "listen 443": f"listen {LOOPBACK}:{port}",
        "    listen [::]:443 ssl;\n": "",
        "/etc/nginx/models.crt": str(cert),
        "/etc/nginx/models.key": str(key),
        **({"proxy_pass http://llama;": "proxy_pass http://llama/;"} if strip else {}),
    }.items():
        assert old in text
        text = text.replace(old, new)
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf = folder / "nginx.conf"
    user = "user root;" if os.getuid() == 0 else ""  # (or its workers could not reach the socket)
    conf.write_text(
        f"daemon off;\n{user}\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{text}}}\n"
    )
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(conf)]


def caddy(folder: Path, port: int, authority: Authority, *, strip: bool) -> list[str]:
    """Write Caddy's file, and return its command."""
    cert, key = authority.pair(folder / "front", NAME, name="models")
    text = block("caddy")
    for old, new in {
        f"{NAME} {{": f"https://{NAME}:{port} {{\n    bind {LOOPBACK}\n    tls {cert} {key}",
        f"X-Forwarded-Host {NAME}": f"X-Forwarded-Host {NAME}:{port}",
        "unix//run/llama/llama.sock": f"unix/{folder}/llama.sock",
        **({"reverse_proxy /llama/*": "uri strip_prefix /llama\n    reverse_proxy"} if strip else {}),
    }.items():
        assert old in text
        text = text.replace(old, new)
    conf = folder / "Caddyfile"
    conf.write_text(f"{{\n    admin off\n    auto_https disable_redirects\n}}\n{text}")
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(conf)]


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    """Run a proxy until the block ends."""
    program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip(f"there is no {command[0]}")
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen([program, *command[1:]], env={**os.environ, **home}, stdout=log, stderr=log)
    try:

        def accepts() -> bool:
            assert process.poll() is None, (folder / "proxy.log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex((LOOPBACK, port)) == 0

        until(accepts)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


class ToLoopback(httpx2.HTTPTransport):
    """Connects to loopback whatever the host is."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions = {**request.extensions, "sni_hostname": NAME}
        request.url = request.url.copy_with(host=LOOPBACK)
        return super().handle_request(request)


@pytest.fixture(scope="module", params=[(nginx, False), (nginx, True), (caddy, False), (caddy, True)], ids=["nginx", "nginx strips", "caddy", "caddy strips"])  # fmt: skip
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    write, strip = request.param
    folder, port = tmp_path_factory.mktemp("front"), free_port(LOOPBACK)
    authority = Authority.at(folder / "ca.crt")
    settings = {"LLAMA_PATH_PREFIX": "/llama", "LLAMA_TRUSTED_PROXIES": "unix"}
    command = write(folder, port, authority, strip=strip)
    with logged() as log, carried("unix", folder, **settings), running(command, folder, port):
        transport = ToLoopback(verify=ssl.create_default_context(cafile=authority.path))
        with httpx2.Client(base_url=f"https://{NAME}:{port}/llama", transport=transport, timeout=60) as client:
            yield Front(port, client, log)


def test_routes_and_the_page(front: Front) -> None:
    for path in ("/health/ready", "/v1/models", "/metrics"):
        assert front.client.get(path).status_code == 200
    page = front.client.get("/", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    body: dict[str, Any] = {"input_data": {"input_string": ["def f(x):"], "parameters": {"max_new_tokens": 2}}}
    assert front.client.post("/score", json=body).json()[0].keys() == {"0"}


def test_the_client_is_known_whatever_it_claims(front: Front) -> None:
    claims = {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.8", "X-Request-Id": "claims"}
    front.client.get("/version", headers=claims)
    until(lambda: front.clients("claims") == [LOOPBACK])


@pytest.mark.parametrize("host", [None, "evil.example", f"{NAME}:1", "evil.example:443"])
def test_openapi_has_the_public_address_whatever_the_client_names(front: Front, host: str | None) -> None:
    claims = {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "http",
        **({"Host": host} if host else {}),
    }
    answer = front.client.get("/openapi.json", headers=claims)
    if host is not None and "evil" in host and not answer.content:
        return  # (Caddy has no site of that name)
    assert answer.json()["servers"] == [{"url": f"https://{NAME}:{front.port}/llama"}]


def test_a_stream_comes_piece_by_piece_and_its_end_is_seen(front: Front) -> None:
    """The first piece is here long before the text is whole; then the client goes."""
    with front.client.stream("POST", "/v1/completions", json=ENDLESS) as streamed:
        first = next(streamed.iter_lines())
        assert json.loads(first.removeprefix("data: "))["choices"]

    def inside() -> float:
        lines = front.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("llama_num_requests_"))

    until(lambda: inside() == 0)
