"""The common part of all routes that take a body: read it, take a slot, parse, generate, respond."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from llama_serving.contract import http, strict_json
from llama_serving.contract.adapter import ProtocolAdapter
from llama_serving.contract.ollama_models import TAG
from llama_serving.contract.request import Body
from llama_serving.errors import NotFound
from llama_serving.faults import as_serving_error
from llama_serving.server import body_reader
from llama_serving.server.accounts.keys import ANONYMOUS
from llama_serving.server.accounts.meter import note
from llama_serving.server.auth import offered
from llama_serving.server.body_reader import BodyReader
from llama_serving.server.lifecycle import Lifecycle
from llama_serving.server.protocols import spoken_at
from llama_serving.server.responses import as_json, refusal
from llama_serving.server.sse import EventStream
from llama_serving.service.collection.caller import Caller
from llama_serving.service.service import Service
from llama_serving.settings import Settings

GONE: Final = 499
"""nginx's status for a client that disconnected before the response."""
DEFAULT_DEADLINE_S: Final = 178.0
"""Seconds; managed endpoints allow 180, less the time for the response."""
READ_S: Final = 10.0
"""Seconds after its deadline in which a stream may still be read."""
SMALL: Final = 16 * 1024
"""Most bytes of a body that asks for nothing costly."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command, in addition to the settings.

    Attributes:
        strict_model: refuse other models' names with 404.
        body_s: seconds in which a body must arrive.
    """

    strict_model: bool = False
    body_s: float = body_reader.BODY_S


class Scoring:
    """The common part of all routes that generate."""

    def __init__(self, lifecycle: Lifecycle, settings: Settings, options: Options) -> None:
        self._lifecycle, self._settings, self._options = lifecycle, settings, options
        self._body_reader = BodyReader(settings.max_body, seconds=options.body_s)
        self._small_body_reader = BodyReader(min(SMALL, settings.max_body), seconds=options.body_s)

    def route(self, adapter: ProtocolAdapter) -> Callable[[Request], Awaitable[Response]]:
        """Return the function of one path."""

        async def score(request: Request) -> Response:
            try:
                return await self._score(adapter, request)
            except ClientDisconnect:
                return Response(status_code=GONE)  # only the log sees it
            except Exception as error:
                spoken = getattr(request.state, "adapter", adapter)
                return refusal(note(as_serving_error(error)), request.state.request_id, spoken)

        return score

    def asking(
        self, answer: Callable[[Service, Body], Any], *, costly: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the function of one path that generates nothing.

        Args:
            answer: makes the response of the body.
            costly: a request takes one of the slots, and its body may be as large as any. Others have small ones.
        """
        body_reader = self._body_reader if costly else self._small_body_reader

        async def ask(request: Request) -> Response:
            try:
                raw = await self._read(request, body_reader)
                with self._lifecycle.serving() as service, service.admitted() if costly else nullcontext():
                    return await asyncio.to_thread(lambda: as_json(answer(service, strict_json.decode(raw))))
            except ClientDisconnect:
                return Response(status_code=GONE)
            except Exception as error:
                adapter = spoken_at(request.url.path)
                return refusal(as_serving_error(error), request.state.request_id, adapter)

        return ask

    async def _read(self, request: Request, reader: BodyReader) -> bytes:
        headers, spoken = request.headers, spoken_at(request.url.path)
        # A page of another site can send a body without a media type unasked, but not without its origin.
        unsaid = spoken is not None and not spoken.names_media_type and "origin" not in headers
        http.check_media_type(headers.get("content-type"), headers.get("content-encoding"), unsaid=unsaid)
        self._lifecycle.ready()  # before a body of up to 4 MiB is read
        return await reader.read(request.receive, declared=headers.get("content-length"))

    async def _score(self, adapter: ProtocolAdapter, request: Request) -> Response:
        raw = await self._read(request, self._body_reader)
        seconds = self._settings.deadline_s or DEFAULT_DEADLINE_S
        deadline = time.monotonic() + seconds
        with ExitStack() as held:
            service = held.enter_context(self._lifecycle.serving())
            held.enter_context(service.admitted())
            # In a thread: decoding a long body would block the loop.
            given = await asyncio.to_thread(strict_json.decode, raw)
            del raw
            adapter = request.state.adapter = adapter.of(given)
            parsed = await asyncio.to_thread(adapter.parse, given)
            del given
            self.check_model(service, parsed.model)
            model, caller = service.variant.name, _caller(request)
            if parsed.parameters.stream:
                deltas = service.astream(parsed, deadline=deadline, caller=caller)
                stream = EventStream.begun(
                    adapter.events(parsed, deltas, model),
                    refusal=lambda error: adapter.error(note(error), request.state.request_id),
                    written=adapter.stream_format,
                    large=parsed.scores_prompt,
                )
                begun = await _unless_gone(request, stream)
                begun.hold(held.pop_all(), until=asyncio.get_running_loop().time() + seconds + READ_S)
                return begun
            answer = service.agenerate(parsed, deadline=deadline, caller=caller)
            generations = await _unless_gone(request, answer)
            return await asyncio.to_thread(lambda: as_json(adapter.answer(parsed, generations, model)))

    def check_model(self, service: Service, name: str | None) -> None:
        """Refuse another model's name if the operator wants that.

        Raises:
            NotFound: it is another name.
        """
        ours = service.variant.name
        if self._options.strict_model and name not in (None, ours, f"{ours}{TAG}"):
            raise NotFound(
                f"This server only has {ours}. Use that name, or leave `model` out.",
                code="model_not_found",
                param="model",
            )


def _caller(request: Request) -> Caller:
    """Return who sends a request, with its key if that was checked: without keys, a client sends any word as one."""
    checked = () if request.state.key.name == ANONYMOUS else offered(request.headers)[:1]
    return Caller(request.state.request_id, checked)


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`, which is cancelled if the client disconnects.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(body_reader.gone(request.receive))
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)
