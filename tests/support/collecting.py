"""A service whose requests a test collects."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llama_serving.contract import protocol
from llama_serving.contract.request import Request
from llama_serving.service.collection.caller import Caller
from llama_serving.service.collection.collector import Collector
from llama_serving.service.collection.record import CollectedRequest
from llama_serving.service.collection.redaction import Redactor
from llama_serving.service.service import Service

TEXT = "    return x + 1\n"
CALLER = Caller("r-1", ("the-bearer-key",))
REDACTOR = Redactor()


@dataclass
class Kept:
    """A sink that keeps what it gets, or does what a test wants first."""

    before: Any = lambda: None
    got: list[CollectedRequest] = field(default_factory=list)
    closed: bool = False
    destination: str = "a test"

    def write(self, request: CollectedRequest) -> None:
        self.before()
        self.got.append(request)

    def close(self) -> None:
        self.closed = True


@contextmanager
def collected(service: Service, rate: float = 1.0) -> Iterator[Kept]:
    """Collect what a service does in the block."""
    sink = Kept()
    service.collector = Collector(sink, REDACTOR, rate=rate)
    try:
        yield sink
    finally:
        service.close()
    assert sink.closed


def parsed(body: dict[str, Any]) -> Request:
    return protocol.parse(body)


def score(*prompts: Any, **parameters: Any) -> Request:
    return parsed({"input_data": {"input_string": list(prompts), "parameters": parameters}})
