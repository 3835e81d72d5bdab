"""Ten times as many clients as a server's capacity: their answers, and the latency of probes meanwhile.

`python -m load_tests.bench.crowd probe URL` and `... ask URL CLIENTS SECONDS FIRST` are the two sides. They and the server are
separate processes, so that none disturbs another's measurement. Probes are sent on schedule, whether or not the previous one
was answered: a server that stalls for a second delays fifty of them, not one.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

CLIENTS: Final = 1000
RUNNING: Final = 16
WAITING: Final = 84
"""Queued requests: with the running ones, a tenth of the clients."""
CAPACITY: Final = {"LLAMA_MAX_NUM_SEQS": str(RUNNING), "LLAMA_QUEUE": str(WAITING)}
NEW_TOKENS: Final = 64
LASTS_S: Final = 30.0
TICK_S: Final = 0.02
ANSWER_S: Final = 180.0
PROBE: Final = b"GET /health/ready HTTP/1.1\r\nHost: crowd\r\nConnection: close\r\n\r\n"
RETRY_AFTER: Final = re.compile(rb"retry-after: (\d+)", re.IGNORECASE)
NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class Crowd:
    """The result.

    Attributes:
        answers: number of answers by status; a broken connection counts as "none".
        again: requests of clients that had been refused before.
        probes: number of probes by status.
        median_s, p99_s, worst_s: latency of probes.
    """

    answers: dict[str, int]
    again: int
    probes: dict[str, int]
    median_s: float
    p99_s: float
    worst_s: float


def once(url: str, clients: int, *, seconds: float = LASTS_S, first: int = 0) -> Crowd:
    """Run one crowd for some seconds, with probes from before its start until its last answer."""
    side = [sys.executable, "-m", "load_tests.bench.crowd"]
    with subprocess.Popen(  # noqa: S603
        [*side, "probe", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as probing:
        probing.stdout.readline()  # type: ignore[union-attr]  # its first probe has its answer
        asked = subprocess.run(  # noqa: S603
            [*side, "ask", url, str(clients), str(seconds), str(first)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        told, _ = probing.communicate()
    return Crowd(**json.loads(asked.stdout), **json.loads(told))


async def _ask(url: str, clients: int, seconds: float, first: int) -> dict[str, Any]:
    """Start all clients at once; refused ones return when told to, until the time is over."""
    together, over = asyncio.Barrier(clients), asyncio.Event()
    answers: Counter[str] = Counter()
    again = 0

    async def one(number: int) -> None:
        nonlocal again
        sent_away = False
        await together.wait()
        while not over.is_set():
            again += sent_away
            status, again_s = await _exchange(url, _request(number))
            answers[status] += 1
            sent_away = again_s > 0
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), again_s)

    asyncio.get_running_loop().call_later(seconds, over.set)
    await asyncio.gather(*(one(first + number) for number in range(clients)))
    return {"answers": answers, "again": again}


def _request(number: int) -> bytes:
    body = {"prompt": f"n{number} def f(x):", "max_tokens": NEW_TOKENS, "ignore_eos": True}
    encoded = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: crowd\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(encoded)}\r\n\r\n"
    )
    return head.encode() + encoded


async def _exchange(url: str, request: bytes) -> tuple[str, float]:
    """Return the status, and the seconds of Retry-After."""
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            return _status(await asyncio.wait_for(reader.read(), ANSWER_S))
        finally:
            writer.close()
    except (OSError, TimeoutError):
        return NONE, 1.0


def _status(answer: bytes) -> tuple[str, float]:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not body:
        return NONE, 1.0
    status, retry = head.split(b" ", 2)[1].decode(), RETRY_AFTER.search(head)
    if status == "429" and retry:
        return "429 with Retry-After", float(retry[1])
    return status, 0.0


async def _probe(url: str) -> dict[str, Any]:
    """Send a probe every `TICK_S`, each on its own connection, until standard input ends."""
    loop = asyncio.get_running_loop()
    ended, waits, statuses = asyncio.Event(), list[float](), Counter[str]()
    loop.add_reader(sys.stdin, ended.set)

    async def one() -> None:
        began = time.perf_counter()
        statuses[(await _exchange(url, PROBE))[0]] += 1
        waits.append(time.perf_counter() - began)

    await one()
    print(flush=True)  # noqa: T201
    async with asyncio.TaskGroup() as group:
        due = loop.time()
        while not ended.is_set():
            group.create_task(one())
            due += TICK_S
            await asyncio.sleep(due - loop.time())
    waits.sort()
    return {"probes": statuses, "median_s": waits[len(waits) // 2], "p99_s": waits[len(waits) * 99 // 100],
            "worst_s": waits[-1]}  # fmt: skip


def told(crowd: Crowd) -> str:
    """Return the result in one line."""
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(crowd.answers.items()))
    probes = ", ".join(f"{count} x {status}" for status, count in sorted(crowd.probes.items()))
    return (
        f"a crowd of {sum(crowd.answers.values())} at capacity {RUNNING + WAITING}: {answers}; probes: {probes}, "
        f"median {crowd.median_s * 1e3:.1f} ms, p99 {crowd.p99_s * 1e3:.1f} ms, worst {crowd.worst_s * 1e3:.1f} ms"
    )


async def _side(name: str, url: str, *given: str) -> Any:
    if name == "probe":
        return await _probe(url)
    clients, seconds, first = given
    return await _ask(url, int(clients), float(seconds), int(first))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_side(*sys.argv[1:]))))  # noqa: T201
