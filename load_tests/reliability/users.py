"""Users of a soak: they send a mixed load until told to stop, and check every answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

import httpx2

from load_tests.protocols import ROUTES, Reply, Verdict, verdict
from load_tests.workload import Lengths, RequestMix, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from load_tests.protocols import Route
    from load_tests.workload import Asked

SHORT: Final = RequestMix(Lengths(20, 120), Lengths(1, 4), stream=0.5, cancel=0.3, bad=0.1)
LONG: Final = RequestMix(Lengths(1000, 3000), Lengths(1, 2), Lengths(1, 1), stream=0.5, cancel=0.5, bad=0.0)
SHARE_LEFT: Final = 0.1
"""Of broken requests: those whose client goes before its body is whole."""
ANSWER_S: Final = 120.0
KEPT_S: Final = 2.0
"""Shorter than any server keeps an idle connection: a request must not meet its end."""
EVENT_END: Final = b"\n\n"
BROKEN: Final = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe{}",
    b'{"a": 1, "a": 2}',
    b'{"input_data": NaN}',
    b'{"input_data": {"input_string": [' + b"[" * 500 + b"]" * 500 + b"]}}",
    b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"messages": 7}',
    b"x" * 10_000,
)
"""Bodies that no route takes: each must get a status from 400 to 499."""


@dataclass(frozen=True, slots=True)
class Load:
    """What users send.

    Attributes:
        long: share of requests with long prompts; the others are short.
        broken: share of broken requests.
    """

    long: float
    broken: float


LOADS: Final = {
    "mixed": Load(long=0.01, broken=0.1),
    "light": Load(long=0.0, broken=0.97),
}
"""`light` has so little to compute that seconds are thousands of requests."""


@dataclass(frozen=True, slots=True)
class Length:
    """How long something lasts: until either is reached."""

    seconds: float = math.inf
    requests: float = math.inf

    def reached(self, seconds: float, requests: int) -> bool:
        """Return whether it is over after so many seconds and requests."""
        return seconds >= self.seconds or requests >= self.requests


@dataclass(slots=True)
class Tally:
    """What came back.

    Attributes:
        outcomes: number of requests by `Verdict.outcome`; `left`: those whose client went before its body was sent.
        faults: number of faults by description.
        whole_s, first_s: seconds to the end of an answer, and to the first event of a stream.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    whole_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Number of requests."""
        return self.outcomes.total()


class Users:
    """A number of concurrent users of one server. The n-th one always sends the same requests in the same order.

    Args:
        url: the server.
        routes: names in `ROUTES`; users take turns.
        number: of users.
        load: what they send.
    """

    def __init__(self, url: str, routes: Sequence[str], number: int, load: Load) -> None:
        self._url, self._load = url, load
        self._users = [(Random(n), ROUTES[routes[n % len(routes)]]) for n in range(number)]  # noqa: S311

    def _client(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=len(self._users), keepalive_expiry=KEPT_S
        )
        return httpx2.AsyncClient(base_url=self._url, timeout=ANSWER_S, limits=limits, trust_env=False)

    async def run(self, length: Length) -> Tally:
        """Send requests; return when the last one has its answer."""
        tally, began = Tally(), time.monotonic()

        def ended() -> bool:
            return length.reached(time.monotonic() - began, tally.requests)

        async with self._client() as http:
            await asyncio.gather(*(self._user(*user, http, tally, ended) for user in self._users))
        return tally

    async def _user(
        self, random: Random, route: Route, http: httpx2.AsyncClient, tally: Tally, ended: Callable[[], bool]
    ) -> None:
        while not ended():
            if random.random() >= self._load.broken:
                mix = LONG if random.random() < self._load.long else SHORT
                asked = draw(mix, random, route.kinds, streams=route.streams)
                found = await _Exchange(route, asked, tally).run(http)
            elif random.random() < SHARE_LEFT:
                found = await _leave(self._url, route.path)
            else:
                found = await _refused(http, route.path, random.choice(BROKEN))
            tally.outcomes[found.outcome] += 1
            if found.fault is not None:
                tally.faults[f"{route.path}: {found.fault}"] += 1


class _Exchange:
    """A request and its answer."""

    def __init__(self, route: Route, asked: Asked, tally: Tally) -> None:
        self._route, self._asked, self._tally = route, asked, tally

    async def run(self, http: httpx2.AsyncClient) -> Verdict:
        began = time.perf_counter()
        try:
            async with http.stream("POST", self._route.path, json=self._route.body(self._asked)) as response:
                reply = await self._read(response, began)
        except httpx2.HTTPError as error:
            return Verdict("wrong", fault=f"no whole answer: {type(error).__name__}")
        found = verdict(self._route, self._asked, reply)
        if found.outcome == "answered":
            self._tally.whole_s.append(time.perf_counter() - began)
        return found

    async def _read(self, response: httpx2.Response, began: float) -> Reply:
        body, cut = bytearray(), False
        streams = response.headers.get("content-type", "").startswith("text/event-stream")
        async for piece in response.aiter_bytes():
            if streams and not body:
                self._tally.first_s.append(time.perf_counter() - began)
            body += piece
            if streams and self._asked.cancelled and EVENT_END in body:
                cut = True
                break
        return Reply(response.status_code, bytes(body), response.headers.get("retry-after"), cut)


async def _refused(http: httpx2.AsyncClient, path: str, body: bytes) -> Verdict:
    """Send a body that must be refused."""
    try:
        response = await http.post(path, content=body, headers={"Content-Type": "application/json"})
    except httpx2.HTTPError as error:
        return Verdict("wrong", fault=f"no answer to a broken body: {type(error).__name__}")
    if response.status_code == 429:
        return Verdict("busy")
    if 400 <= response.status_code < 500:
        return Verdict("refused")
    return Verdict("wrong", fault=f"status {response.status_code} for the broken body {body[:40]!r}")


async def _leave(url: str, path: str) -> Verdict:
    """Send half a body, and go."""
    host, _, port = url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode() + b'{"input_data": ')
    await writer.drain()
    writer.close()
    return Verdict("left")
