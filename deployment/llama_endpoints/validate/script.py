"""Static analysis of a scoring script: what it defines and imports, and how its functions are called."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_endpoints.validate import filesystem
from llama_endpoints.validate.spec_files import SpecFile

Function = ast.FunctionDef | ast.AsyncFunctionDef
_LOOSE = "*"
"""Marks `from x import *`, after which any name may exist."""


@dataclass(frozen=True, slots=True)
class Script:
    """One Python file.

    Attributes:
        path: the file's path.
        defined: names the module defines, at least.
        imported: imported modules and names.
        functions: functions defined in the file, by name.
    """

    path: Path
    defined: frozenset[str]
    imported: frozenset[str]
    functions: dict[str, Function]

    @classmethod
    def read(cls, path: Path) -> "Script":
        """Parse a file.

        Raises:
            SyntaxError: it is not Python.
            OSError: it cannot be read.
            ValueError: it is not text.
        """
        module = ast.parse(path.read_bytes())
        statements = list(_statements(module.body))
        return cls(
            path,
            frozenset(name for one in statements for name in _names(one)),
            frozenset(_imported(module)),
            {one.name: one for one in statements if isinstance(one, Function)},
        )

    @classmethod
    def of(cls, spec: SpecFile) -> "Script | None":
        """Return a deployment's script; None if it has none, or it cannot be read here."""
        path = script_path(spec)
        try:
            return cls.read(path) if path is not None and filesystem.is_file(path) else None
        except (SyntaxError, ValueError, OSError):
            return None

    def lacks(self, name: str) -> bool:
        """Whether the module certainly does not define a name."""
        return name not in self.defined and _LOOSE not in self.defined


def script_path(spec: SpecFile) -> Path | None:
    """Return the local path of a deployment's script; None if it has none, or the code is remote."""
    code, script = spec.text("code_configuration", "code"), spec.text("code_configuration", "scoring_script")
    if not code or not script or is_remote(code):
        return None
    return spec.path.parent / code / script


def is_remote(code: str) -> bool:
    """Whether code is registered in Azure, or fetched from elsewhere."""
    return "://" in code or code.startswith("azureml:")


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run on import, on any branch."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.For | ast.While | ast.With | ast.Try):
            for name in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, name, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def _names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.ImportFrom | ast.Import):
        yield from (alias.asname or alias.name for alias in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def _imported(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
