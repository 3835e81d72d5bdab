"""Run the model's program and answer calls of its functions. Nothing that it says is trusted.

Arguments: its own name, descriptor with the program's text.
"""

import builtins
import itertools
import os
import sys
from typing import Any, BinaryIO, Final

from llama_endpoints.evaluation.sandbox.inside import exchange

_MOST_ITEMS: Final = 1_000_000


class Program:
    """The program, and the objects that its calls returned and that cannot leave."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._scope: dict[str, Any] = {"__name__": "candidate"}
        self._objects: list[Any] = []

    def answer(self, ask: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one request."""
        try:
            return {"value": exchange.encode(self._answer(ask), self._keep)}
        except BaseException as error:  # whatever it raises is its answer
            return {"error": [type(error).__name__, str(error)[:500]]}

    def _answer(self, ask: dict[str, Any]) -> Any:
        if "define" in ask:
            for text, file in ((self._text, "candidate.py"), (ask["define"], "setup.py")):
                exec(compile(text, file, "exec"), self._scope)  # noqa: S102  (what this file is for)
            return None
        if "attribute" in ask:
            number, name = ask["attribute"]
            return getattr(self._objects[number], name)
        if "name" in ask:
            return self._scope[ask["name"]]
        if "iterate" in ask:
            return list(itertools.islice(self._objects[ask["iterate"]], _MOST_ITEMS))
        arguments = [self._decode(one) for one in ask["arguments"]]
        named = {name: self._decode(one) for name, one in ask["named"].items()}
        return self._called(ask["call"])(*arguments, **named)

    def _called(self, name: str | int) -> Any:
        """Return a kept object by its number, or what a name means in the program."""
        if isinstance(name, int):
            return self._objects[name]
        return self._scope[name] if name in self._scope else vars(builtins)[name]

    def _decode(self, given: Any) -> Any:
        return exchange.decode(given, self._objects.__getitem__, lambda *_: None)

    def _keep(self, value: Any) -> int:
        self._objects.append(value)
        return len(self._objects) - 1


def channel() -> tuple[BinaryIO, BinaryIO]:
    """Take the standard streams for the calls, and give the program empty ones."""
    reading, writing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(empty, number)
    return reading, writing


def main() -> None:
    """Answer until the checker has no more requests."""
    with os.fdopen(int(sys.argv[2]), encoding="utf-8", errors="surrogatepass") as file:
        program = Program(file.read())
    reading, writing = channel()
    while (ask := exchange.receive(reading)) is not None:
        exchange.send(writing, program.answer(ask))


if __name__ == "__main__":
    main()
