"""Which names of a test are the candidate's, and which statements of its setup need them."""

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

_SCOPES: Final = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setup:
    """A setup, divided.

    Attributes:
        here: program of what needs nothing of the candidate's; it runs in the checker.
        there: names that the rest binds, which runs behind the candidate's program alone.
    """

    here: ast.Module
    there: frozenset[str]


def defined(program: str) -> frozenset[str]:
    """Return the functions, classes and variables that a program defines; none if it is not Python."""
    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError):
        return frozenset()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = {one.name for one in body if isinstance(one, kinds)}
    assigned = (one for one in body if isinstance(one, ast.Assign | ast.AnnAssign))
    return frozenset(found.union(*map(_stored, assigned)))


def free_names(program: str, known: Iterable[str], candidates: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the names that a program reads and nothing defines.

    Args:
        program: a test.
        known: names that its scope has.
        candidates: names that are the candidate's even where they are built-in, such as its own `sum`.
    """
    nodes = list(ast.walk(ast.parse(program)))
    return frozenset(_read(nodes)) - _bound(nodes) - {*known} - (vars(builtins).keys() - candidates)


def divide(setup: str, known: Iterable[str], candidates: frozenset[str]) -> Setup:
    """Divide a setup into what the checker can run and what needs the candidate's classes or functions.

    Classes are the candidate's, too: their objects can be sent by reference alone.

    Args:
        setup: program.
        known: names that the checker's scope has.
        candidates: names that the data's own solution defines.
    """
    body, known = ast.parse(setup).body, {*known}
    there = {*free_names(setup, known, candidates)}
    waiting, moved = body, True
    while moved:
        kept = [one for one in waiting if not isinstance(one, ast.ClassDef) and not _needs(one, there)]
        moved = len(kept) < len(waiting)
        for one in waiting:
            if one not in kept:
                there |= _changed(one) - known
        waiting = kept
    return Setup(ast.Module(waiting, []), frozenset(there & _bound(_of_the_module(body))))


def read(program: str) -> set[str]:
    """Return the names that a program reads."""
    return _read(ast.walk(ast.parse(program)))


def imports(setup: str) -> ast.Module:
    """Return the import statements of a setup, which both sides run."""
    return ast.Module(
        [one for one in ast.parse(setup).body if isinstance(one, ast.Import | ast.ImportFrom)], []
    )


def _needs(statement: ast.stmt, names: set[str]) -> bool:
    return not names.isdisjoint(_read(ast.walk(statement)))


def _changed(statement: ast.stmt) -> set[str]:
    """Return the names whose values a statement may change: what it binds, and what it calls or assigns into."""
    bound = _bound(_of_the_module([statement]))
    plain = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or (
        isinstance(statement, ast.Assign)
        and all(isinstance(target, ast.Name | ast.Tuple) for target in statement.targets)
    )
    return bound if plain else bound | _read(ast.walk(statement)) - vars(builtins).keys()


def _of_the_module(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the nodes of statements without those that have a scope of their own."""
    for one in statements:
        yield one
        if not isinstance(one, _SCOPES):
            yield from _of_the_module(ast.iter_child_nodes(one))


def _read(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _stored(statement: ast.AST) -> set[str]:
    nodes = ast.walk(statement)
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _bound(nodes: Iterable[ast.AST]) -> set[str]:
    bound = set[str]()
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
    return bound
