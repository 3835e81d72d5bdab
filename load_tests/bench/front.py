"""The limit of our servers themselves, in front of a stub that streams as fast as it can, with 256 sequences at a time."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from llama_endpoints.devtools.servers import LOOPBACK, azmlinfsrv, free_port, own_server
from load_tests.bench.stub import MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
SEQUENCES: Final = 256
NEW_TOKENS: Final = 256
REQUESTS: Final = 2
THREADS: Final = 2 * SEQUENCES + 8
LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Tokens a second through one server."""

    front: str
    rate: float


def ceilings(model: Path) -> list[Ceiling]:
    """Measure our own server, whole and streamed, and azmlinfsrv, each with its own stub."""
    found = []
    with _stub() as env, own_server(MODEL, env=env) as server:
        for stream in (False, True):
            body = {"prompt": "def f(x):", "max_tokens": NEW_TOKENS, "stream": stream}
            name = f"our server, {'streamed' if stream else 'whole'}"
            found.append(Ceiling(name, rate(f"{server.url}/v1/completions", body)))
    with _stub() as env, azmlinfsrv(model, score=ROOT / "score", env=env, threads=THREADS) as server:
        parameters = {"max_new_tokens": NEW_TOKENS}
        body = {"input_data": {"input_string": ["def f(x):"], "parameters": parameters}}
        found.append(Ceiling("azmlinfsrv, whole", rate(f"{server.url}/score", body)))
    return found


def rate(url: str, body: dict[str, Any], *, sequences: int = SEQUENCES, requests: int = REQUESTS) -> float:
    """Return tokens a second with a number of clients that each send some requests in sequence.

    Raises:
        RuntimeError: an answer has a status other than 200.
    """
    content = json.dumps(body).encode()
    place = urlsplit(url)
    head = (
        f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )

    async def client() -> None:
        for _ in range(requests):
            await _exchange(place.hostname or LOOPBACK, place.port or 80, head.encode() + content)

    async def all_of_them() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(sequences)))
        return time.perf_counter() - began

    return sequences * requests * NEW_TOKENS / asyncio.run(all_of_them())


async def _exchange(host: str, port: int, request: bytes) -> None:
    """Read an answer to its end with minimal work: the client shares the machine."""
    reader, writer = await asyncio.open_connection(host, port, limit=LIMIT)
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = head.split()[1].decode()
        if status != "200":
            raise RuntimeError(f"the front answers {status}")
        if b"transfer-encoding: chunked" not in head:
            await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
            return
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
    finally:
        writer.close()


@contextmanager
def _stub() -> Iterator[dict[str, str]]:
    """Run a stub, and yield the settings to use it."""
    port = free_port(LOOPBACK)
    command = [sys.executable, "-m", "load_tests.bench.stub", str(port)]
    with subprocess.Popen(command, cwd=ROOT) as process:  # noqa: S603
        try:
            _wait(process, port)
            yield {
                "LLAMA_ENGINE": "upstream",
                "LLAMA_UPSTREAM_URL": f"http://{LOOPBACK}:{port}",
                "LLAMA_MAX_NUM_SEQS": str(SEQUENCES),
                "LLAMA_QUEUE": str(SEQUENCES),
            }
        finally:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until it listens."""
    while process.poll() is None:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the stub did not start")
