"""Check the candidate's answers, and write the verdict behind the nonce. The candidate's code never runs here.

Arguments: its own name, descriptor with the job as JSON, descriptor for the verdict.

    {"nonce", "setup": program whose names the test may use, "entry": name of the function or null, "test": program,
     "solution": the data's own program}

With an entry the test defines `check(candidate)`. Without one, names that nothing defines, and those that the data's own
solution defines, are the candidate's functions.
"""

import ast
import builtins
import json
import os
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from llama_endpoints.evaluation.sandbox.inside import exchange, names


class Gone(Exception):
    """The candidate's process has ended, or says nothing that can be understood."""


class Candidate:
    """The functions of the candidate."""

    def __init__(self, reading: BinaryIO, writing: BinaryIO) -> None:
        self._reading, self._writing = reading, writing
        self.references: type[exchange.Reference] = exchange.Reference

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
            return self.ask(exchange.call(name, arguments, named))

        call.__name__ = name
        return call

    def _refer(self, number: int, name: str) -> exchange.Reference:
        return self.references(number, str(name)[:100], self.ask)


def _raised(name: str, text: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # (UnicodeDecodeError and others take more)
            return Exception(f"{name}: {text}")
    return Exception(f"{name}: {text}")


def check(job: dict[str, Any], candidate: Candidate) -> None:
    """Run the test."""
    scope: dict[str, Any] = {"__name__": "checker"}
    entry = job["entry"]
    if entry is None:
        _run_statements(job, candidate, scope)
        return
    _run(job["setup"], "setup.py", scope)
    candidate.ask({"define": ""})
    scope[entry] = candidate.function(entry)
    _run(job["test"], "test.py", scope)
    scope["check"](scope[entry])


def _run_statements(job: dict[str, Any], candidate: Candidate, scope: dict[str, Any]) -> None:
    """Run a test that names the candidate's functions. Its setup may, too, so all of that runs behind the program as well."""
    candidate.references = exchange.OpenReference
    own = names.defined(job["solution"])
    _run(names.imports(job["setup"]), "setup.py", scope)
    setup = names.divide(job["setup"], scope, own)
    candidate.ask({"define": job["setup"]})
    for name in names.free_names(ast.unparse(setup.here) + "\n" + job["test"], scope, own) - setup.there:
        scope[name] = candidate.function(name)
    _run(setup.here, "setup.py", scope)
    for name in setup.there & names.read(job["test"]):
        scope[name] = candidate.ask({"name": name})
    _run(job["test"], "test.py", scope)


def _run(program: str | ast.Module, file: str, scope: dict[str, Any]) -> None:
    exec(compile(program, file, "exec"), scope)  # noqa: S102  (the task's own, not the model's)


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
