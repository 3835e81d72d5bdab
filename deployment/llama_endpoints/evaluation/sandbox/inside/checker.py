"""Check the candidate's answers, and write the verdict behind the nonce. The candidate's code never runs here.

Arguments: its own name, descriptor with the job as JSON, descriptor for the verdict.

    {"nonce", "setup": program whose names the test may use, "entry": name of the function or null, "test": program}

With an entry the test defines `check(candidate)`. Without one, names that nothing defines are the candidate's functions.
"""

import ast
import builtins
import json
import os
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from llama_endpoints.evaluation.sandbox.inside import exchange


class Gone(Exception):
    """The candidate's process has ended, or says nothing that can be understood."""


class Candidate:
    """The functions of the candidate."""

    def __init__(self, reading: BinaryIO, writing: BinaryIO) -> None:
        self._reading, self._writing = reading, writing

    def ask(self, request: dict[str, Any]) -> Any:
        """Return the value of an answer.

        Raises:
            Gone: there is none.
            Exception: what the candidate raised.
        """
        try:
            exchange.send(self._writing, request)
            reply = exchange.receive(self._reading)
            if "error" not in reply:
                return exchange.decode(reply["value"], lambda _: None, self._refer)
            name, text = map(str, reply["error"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise Gone("the program ended, or broke the exchange") from error
        raise _raised(name, text)

    def function(self, name: str) -> Callable[..., Any]:
        """Return a function that calls the candidate's."""

        def call(*arguments: Any, **named: Any) -> Any:
            given = [exchange.encode(one, _refuse) for one in arguments]
            return self.ask(
                {
                    "call": name,
                    "arguments": given,
                    "named": {k: exchange.encode(v, _refuse) for k, v in named.items()},
                }
            )

        call.__name__ = name
        return call

    def _refer(self, number: int, name: str) -> exchange.Reference:
        return exchange.Reference(number, str(name)[:100], self.ask)


def _refuse(value: Any) -> NoReturn:
    raise TypeError(f"the test passes a {type(value).__name__}, which cannot be sent to the program")


def _raised(name: str, text: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # (UnicodeDecodeError and others take more)
            return Exception(f"{name}: {text}")
    return Exception(f"{name}: {text}")


def free_names(program: str, scope: dict[str, Any]) -> set[str]:
    """Return the names that a program reads and nothing defines."""
    nodes = list(ast.walk(ast.parse(program)))
    bound = scope.keys() | vars(builtins).keys()
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                bound.add((other or name).partition(".")[0])
    return {node.id for node in nodes if isinstance(node, ast.Name)} - bound


def check(job: dict[str, Any], candidate: Candidate) -> None:
    """Run the test."""
    scope: dict[str, Any] = {"__name__": "checker"}
    exec(compile(job["setup"], "setup.py", "exec"), scope)  # noqa: S102  (the task's own, not the model's)
    candidate.ask({"define": True})
    entry = job["entry"]
    for name in free_names(job["test"], scope) if entry is None else {entry}:
        scope[name] = candidate.function(name)
    exec(compile(job["test"], "test.py", "exec"), scope)  # noqa: S102  (likewise)
    if entry is not None:
        scope["check"](scope[entry])


def verdict(job: dict[str, Any], candidate: Candidate) -> dict[str, Any]:
    """Return whether the candidate passes, and why not."""
    try:
        check(job, candidate)
    except Gone as error:
        return {"passed": False, "kind": "Gone", "detail": str(error)}
    except BaseException as error:
        kind = type(error).__name__
        return {"passed": False, "kind": kind, "detail": f"{kind}: {str(error)[:300]}".rstrip(": ")}
    return {"passed": True, "kind": "", "detail": ""}


def main() -> None:
    """Check one candidate."""
    with os.fdopen(int(sys.argv[2]), encoding="utf-8") as file:
        job = json.load(file)
    found = verdict(job, Candidate(os.fdopen(0, "rb"), os.fdopen(1, "wb")))
    with os.fdopen(int(sys.argv[3]), "w", encoding="utf-8") as file:
        file.write(job["nonce"] + json.dumps(found))


if __name__ == "__main__":
    main()
