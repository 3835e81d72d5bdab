"""How Azure calls a scoring script: init(), and run() once for each request or mini-batch.

The rules for online deployments are those of azureml-inference-server-http, which looks at run() when it starts.
"""

import ast
from collections.abc import Iterator
from typing import Final

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import Kind
from llama_endpoints.validate.script import Function, Script
from llama_endpoints.validate.spec_files import Spec

_SCRIPT: Final[Place] = ("code_configuration", "scoring_script")
_HEADERS: Final = "request_headers"
"""What the server gives a run() that asks for it."""
_RAW: Final = "rawhttp"


def findings(spec: Spec, script: Script) -> Iterator[Finding]:
    """Of init() and run() where they are written in the script itself."""
    for name, check in (
        ("init", _init),
        ("run", _batch_run if spec.kind is Kind.BATCH_DEPLOYMENT else _online_run),
    ):
        function = script.functions.get(name)
        for wrong in check(function) if function is not None else ():
            yield spec.find(Rule.SCRIPT, _SCRIPT, f"names {script.path.name}, whose {name}() {wrong}")


def _init(init: Function) -> Iterator[str]:
    if init.decorator_list:
        return
    if isinstance(init, ast.AsyncFunctionDef):
        yield "is async, and Azure does not await it. Write `def init():`."
    if _required(init):
        yield f"needs {', '.join(_required(init))}, and Azure calls it without anything. Write `def init():`."


def _online_run(run: Function) -> Iterator[str]:
    if any(_called(one) != _RAW for one in run.decorator_list):
        return  # (a schema of inference-schema names the arguments, and others may do anything)
    if isinstance(run, ast.AsyncFunctionDef):
        yield "is async, and Azure's server does not await it. Write `def run(data):`."
    arguments = run.args
    if arguments.posonlyargs or arguments.vararg or arguments.kwarg:
        yield "takes arguments by position only, *args or **kwargs, and Azure's server does not start with these. Write `def run(data):`."
        return
    names = [one.arg for one in (*arguments.args, *arguments.kwonlyargs) if one.arg != _HEADERS]
    if not names:
        yield "takes nothing, and Azure's server gives it the request. Write `def run(data):`."
    more = [name for name in _required(run) if name not in {_HEADERS, *names[:1]}]
    if more:
        yield f"needs {', '.join(more)} beside {names[0]}, and Azure's server gives it the request alone. Write `def run({names[0]}):`."


def _batch_run(run: Function) -> Iterator[str]:
    if run.decorator_list:
        return
    if isinstance(run, ast.AsyncFunctionDef):
        yield "is async, and Azure does not await it. Write `def run(mini_batch):`."
    given = [*run.args.posonlyargs, *run.args.args]
    more = [
        name for name in _required(run) if name not in {one.arg for one in given[:1]} and "context" not in name
    ]
    if (not given and not run.args.vararg) or more:
        said = f"needs {', '.join(more)} as well" if more else "takes nothing"
        yield f"{said}, and Azure gives it a list of files. Write `def run(mini_batch):`."
    if not _returns(run):
        yield "returns nothing, and then every mini-batch has failed. Return a list or a DataFrame, with an entry for each file or row that was done."


def _required(function: Function) -> list[str]:
    """Arguments without a default."""
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
    """All of a function but what is inside of others."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
