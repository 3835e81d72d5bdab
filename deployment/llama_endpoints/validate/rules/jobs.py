"""Command jobs and components: the code exists, and the command uses inputs and outputs that are defined."""

import re
from collections.abc import Iterator
from typing import Final

from llama_endpoints.validate import filesystem
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import COMMANDS, SpecKind
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import shown

_USED: Final = re.compile(r"\$\{\{\s*(inputs|outputs)\.([A-Za-z_]\w*)")
_IMPLICIT: Final = ("outputs", "default")
"""An output that every job has."""


def rules(spec: SpecFile, _tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of command jobs and of command components."""
    if spec.kind not in COMMANDS:
        return
    if not spec.text("command").strip():
        yield spec.find(Rule.COMMAND, ("command",), "must be the command line to run.")
    if spec.at("environment") is None:
        yield spec.find(
            Rule.ENVIRONMENT_MISSING, ("environment",),
            "is missing: the command runs in an image. Write azureml:NAME:VERSION.",
        )  # fmt: skip
    code = spec.at("code")
    if isinstance(code, str) and ":" not in code and not filesystem.exists(spec.path.parent / code):
        yield spec.find(
            Rule.CODE,
            ("code",),
            f"must be a folder; {spec.path.parent / code} does not exist. The path is relative to this file.",
        )
    for side, name in dict.fromkeys(_USED.findall(spec.text("command"))):
        implicit = spec.kind is SpecKind.COMMAND_JOB and (side, name) == _IMPLICIT
        if name not in spec.mapping(side) and not implicit:
            there = ", ".join(spec.mapping(side)) or "none"
            yield spec.find(
                Rule.COMMAND,
                ("command",),
                f"uses {side}.{name}, which is not defined. Defined {side}: {there}.",
            )
    for name in spec.mapping("inputs"):
        path = spec.at("inputs", name, "path")
        if isinstance(path, str) and ":" not in path and not filesystem.exists(spec.path.parent / path):
            yield spec.find(
                Rule.PATH,
                ("inputs", name, "path"),
                f"must exist; {shown(path)} does not. The path is relative to this file.",
            )
