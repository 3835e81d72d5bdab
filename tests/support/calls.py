"""What tests ask of our own server: requests, its metrics, connections that are left open."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from requests.structures import CaseInsensitiveDict

from tests.conftest import Answer

PATIENCE_S = 60


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true; fail after a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def get(url: str, **headers: str) -> Answer:
    """GET on loopback."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=named), timeout=60) as response:
            return Answer(response.status, response.read().decode(), CaseInsensitiveDict(response.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode(), CaseInsensitiveDict(error.headers))


def is_up(url: str, path: str = "/health/ready") -> bool:
    """Return whether a server answers a probe with 200; nobody may listen yet."""
    try:
        return get(url + path).status == 200
    except OSError:
        return False


def metric(url: str, name: str) -> float:
    """Return the value of a metric without labels."""
    lines = get(f"{url}/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def requests_inside(url: str, **headers: str) -> float:
    """Return how many requests run and wait, of one scrape."""
    lines = get(f"{url}/metrics", **headers).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("llama_num_requests_"))


def opened(url: str, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    """Return a connection that has sent a request and reads nothing yet."""
    place, raw = urlsplit(url), json.dumps(body).encode()
    connection = socket.create_connection((place.hostname or "", place.port or 0), timeout=60)
    connection.sendall(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (path.encode(), len(raw), raw)
    )
    return connection
