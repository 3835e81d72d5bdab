"""Requests to a service without a server, and how they end."""

from typing import Any, Final, cast

from llama_serving.catalog import ModelVariant
from llama_serving.contract.request import (
    Completion,
    Generation,
    Input,
    Parameters,
    ReplyShape,
    Request,
)
from llama_serving.engine.handle import Handle, Token
from llama_serving.errors import Unavailable
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.service.service import Service
from llama_serving.settings import Settings

TEXT: Final = "def sort(values):"


def request(
    *inputs: Input, ceiling: bool = False, reply: ReplyShape = ReplyShape.ROWS, **parameters: Any
) -> Request:
    """A request as `/score` gives it; greedy and short unless the test says otherwise."""
    prompts = inputs or (Completion(TEXT),)
    paths = tuple(f"input_data.input_string[{index}]" for index in range(len(prompts)))
    return Request(prompts, Parameters(**parameters), reply, paths, "input_data.parameters", ceiling)


def greedy(*inputs: Input, **parameters: Any) -> Request:
    return request(*inputs, **{"do_sample": False, "max_new_tokens": 12, **parameters})


def of(variant: ModelVariant, tokenizer: Tokenizer, **settings: Any) -> Service:
    """A service that prepares requests and has no engine."""
    return Service(variant, tokenizer, cast("Any", None), Settings(**settings))


def only(service: Service, asked: Request) -> Generation:
    ((generation,),) = service.generate(asked)
    return generation


class Scripted:
    """Gives each sequence the same tokens; refuses sequences from number `full` on."""

    def __init__(self, *ids: int, full: int = 16) -> None:
        self.handles: list[Handle] = []
        self._ids = ids
        self._full = full

    def submit(self, *_: object, **__: object) -> Handle:
        if len(self.handles) == self._full:
            raise Unavailable("No more.")
        handle = Handle()
        for token_id in self._ids:
            handle.push(Token(token_id, -1.0))
        handle.finish("length")
        self.handles.append(handle)
        return handle


def scripted(variant: ModelVariant, tokenizer: Tokenizer, engine: Scripted) -> Service:
    return Service(variant, tokenizer, cast("Any", engine), Settings())
