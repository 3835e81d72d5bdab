"""An engine in front of a stand-in for a model's server."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from llama_serving.engine.handle import Handle
from llama_serving.engine.upstream.client import UpstreamClient
from llama_serving.engine.upstream.engine import ServerMonitor, UpstreamEngine
from llama_serving.engine.upstream.stream_parser import StreamedCompletion
from llama_serving.errors import ServingError
from llama_serving.sampling_params import SamplingParams
from tests.support.upstreams import MODEL, FakeUpstream, chunk, event

PROMPT: Final = (1, 5, 6)
GREEDY: Final = SamplingParams(max_new_tokens=3)
STOPPING: Final = replace(GREEDY, stop_ids=frozenset({2, 9}))
SECRET: Final = "a prompt that nobody may see"


@contextmanager
def running(fake: FakeUpstream, *, stall_s: float = 60.0, key: str | None = None, **how: Any) -> Iterator[UpstreamEngine]:  # fmt: skip
    """An engine of that server, whose probing request is removed from the record."""
    started = UpstreamEngine(
        lambda: UpstreamClient(fake.url, key=key, stall_s=stall_s),
        monitor=ServerMonitor.at(fake.url),
        model=MODEL,
        **{"start_s": 5.0, **how},
    )
    try:
        fake.asked.clear()
        yield started
    finally:
        started.close()


def ended(handle: Handle) -> tuple[list[int], str | None, ServingError | None]:
    """The generated ids, and the finish reason."""
    handle.wait()
    got: list[int] = []
    try:
        for token in handle:
            got.append(token.id)  # noqa: PERF401  (those before an error count)
    except ServingError as error:
        return got, None, error
    return got, handle.finish_reason, None


def run(own: UpstreamEngine, params: SamplingParams = GREEDY, **more: Any) -> tuple[list[int], str | None, ServingError | None]:  # fmt: skip
    return ended(own.submit(PROMPT, params, **more))


def read(*events: object, params: SamplingParams = STOPPING) -> tuple[list[int], StreamedCompletion]:
    answer = StreamedCompletion(PROMPT, params)
    tokens = [
        token for one in events for token in answer.read(one if isinstance(one, str) else json.dumps(one))
    ]
    return [token.id for token in tokens], answer


TWO: Final = [event(chunk([7], prompt_token_ids=list(PROMPT))), event(chunk([8]))]
