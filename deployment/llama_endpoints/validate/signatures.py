"""Check how Azure calls a scoring script: init(), and run() for each request or mini-batch.

The rules for online deployments are those of azureml-inference-server-http, which inspects run() at its start.
"""

import ast
from collections.abc import Iterator
from typing import Final

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import SpecKind
from llama_endpoints.validate.script import Function, Script
from llama_endpoints.validate.spec_files import SpecFile

_SCRIPT: Final[Place] = ("code_configuration", "scoring_script")
_HEADERS: Final = "request_headers"
"""Argument names for which the server passes the raw request."""
_RAW: Final = "rawhttp"


def findings(spec: SpecFile, script: Script) -> Iterator[Finding]:
    """Yield the findings about init() and run(), if the script itself defines them."""
    for name, check in (
        ("init", _init),
        ("run", _batch_run if spec.kind is SpecKind.BATCH_DEPLOYMENT else _online_run),
    ):
        function = script.functions.get(name)
        for wrong in check(function) if function is not None else ():
            yield spec.find(Rule.SCRIPT, _SCRIPT, f"names {script.path.name}, whose {name}() {wrong}")


def _init(init: Function) -> Iterator[str]:
    if init.decorator_list:
        return
    if isinstance(init, ast.AsyncFunctionDef):
        yield "is async, but Azure does not await it. Write `def init():`."
    if _required(init):
        yield f"requires {', '.join(_required(init))}, but Azure calls it without arguments. Write `def init():`."


def _online_run(run: Function) -> Iterator[str]:
    if any(_called(one) != _RAW for one in run.decorator_list):
        return  # a schema of inference-schema names the arguments; other decorators may change anything
    if isinstance(run, ast.AsyncFunctionDef):
        yield "is async, but Azure's server does not await it. Write `def run(data):`."
    arguments = run.args
    if arguments.posonlyargs or arguments.vararg or arguments.kwarg:
        yield "has positional-only arguments, *args or **kwargs, with which Azure's server does not start. Write `def run(data):`."
        return
    names = [one.arg for one in (*arguments.args, *arguments.kwonlyargs) if one.arg != _HEADERS]
    if not names:
        yield "takes no argument, but Azure's server passes the request. Write `def run(data):`."
    more = [name for name in _required(run) if name not in {_HEADERS, *names[:1]}]
    if more:
        yield f"requires {', '.join(more)} besides {names[0]}, but Azure's server passes only the request. Write `def run({names[0]}):`."


def _batch_run(run: Function) -> Iterator[str]:
    if run.decorator_list:
        return
    if isinstance(run, ast.AsyncFunctionDef):
        yield "is async, but Azure does not await it. Write `def run(mini_batch):`."
    given = [*run.args.posonlyargs, *run.args.args]
    more = [
        name for name in _required(run) if name not in {one.arg for one in given[:1]} and "context" not in name
    ]
    if (not given and not run.args.vararg) or more:
        said = f"also requires {', '.join(more)}" if more else "takes no argument"
        yield f"{said}, but Azure passes a list of files. Write `def run(mini_batch):`."
    if not _returns(run):
        yield "returns nothing, so every mini-batch fails. Return a list or a DataFrame with an entry for each file or row."


def _required(function: Function) -> list[str]:
    """Return the arguments without a default."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    needed = positional[: len(positional) - len(arguments.defaults)]
    by_name = [
        one for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    return [one.arg for one in (*needed, *by_name)]


def _called(decorator: ast.expr) -> str:
    node = decorator.func if isinstance(decorator, ast.Call) else decorator
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _returns(function: Function) -> bool:
    """Whether it may return a value."""
    own = list(_own(function))
    values = [node for node in own if isinstance(node, ast.Return) and not _is_nothing(node.value)]
    return bool(values) or any(isinstance(node, ast.Yield | ast.YieldFrom) for node in own)


def _is_nothing(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _own(function: Function) -> Iterator[ast.AST]:
    """Yield a function's nodes, without nested functions."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
