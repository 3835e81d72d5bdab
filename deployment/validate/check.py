"""Files -> findings."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from deployment.validate import (
    assets,
    autoscale,
    azure_says,
    batch,
    clusters,
    disk,
    endpoints,
    engines,
    jobs,
    kubernetes,
    machines,
    names,
    online,
    ranges,
    references,
    scripts,
    shapes,
    variables,
)
from deployment.validate.findings import Finding, Level, Rule
from deployment.validate.kinds import ALLOWED
from deployment.validate.leaks import leaks, masked
from deployment.validate.lines import Document, read
from deployment.validate.ranges import shown
from deployment.validate.tree import SUFFIXES, Spec, Tree, around, beside, specs_of
from llama_serving.errors import SetupError

RULES: Final[tuple[Callable[[Spec, Tree], Iterator[Finding]], ...]] = (
    shapes.rules, ranges.rules, names.rules, references.rules, scripts.rules, variables.rules, engines.rules, machines.rules,
    online.rules, batch.rules, endpoints.rules, assets.rules, clusters.rules, jobs.rules, kubernetes.rules,
    autoscale.rules,
)  # fmt: skip
_NOT_AZURES: Final = ("conda", "docker-compose", "compose")
"""YAML that lies beside Azure's and has no $schema."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in how many files."""

    files: int
    findings: tuple[Finding, ...]

    def count(self, level: Level) -> int:
        """Findings of a level."""
        return sum(finding.level is level for finding in self.findings)

    def summary(self) -> str:
        """One line."""
        counts = [
            (self.files, "file"),
            (self.count(Level.ERROR), "error"),
            (self.count(Level.WARNING), "warning"),
        ]
        files, errors, warnings = (f"{number} {noun}{'' if number == 1 else 's'}" for number, noun in counts)
        return f"{files}: {errors}, {warnings}."


@dataclass(slots=True)
class _Trees:
    """What lies around files, read once."""

    given: tuple[Spec, ...]
    known: dict[Path, tuple[Spec, ...]] = field(default_factory=dict)

    def of(self, path: Path) -> Tree:
        """What was given comes before what lies around."""
        root = around(path)
        if root not in self.known:
            self.known[root] = tuple(specs_of(beside(root)))
        return Tree((*self.given, *self.known[root]))


def check(paths: Sequence[Path]) -> Report:
    """All findings of files and of those in folders, file by file and line by line.

    Raises:
        SetupError: a folder holds no such file, or Azure's client is not installed.
    """
    files = list(dict.fromkeys(_files(paths)))
    given = tuple(specs_of(file for file in files if disk.is_file(file)))
    trees = _Trees(given)
    found = tuple(finding for file in files for finding in check_file(file, trees.of))
    return Report(len(files), found)


def check_file(path: Path, tree_of: Callable[[Path], Tree]) -> list[Finding]:
    """The findings of one file, by their lines."""
    document, found = read(path)
    if document is None:
        return found
    secrets = list(leaks(document))
    spec = Spec.of(document)
    if spec is None:
        found.append(_unknown(document))
    else:
        found += _of_spec(spec, tree_of(path), loads=all(one.rule is Rule.DUPLICATE_KEY for one in found))
    hidden = {secret.line for secret in secrets}  # (no other message may show what stands there)
    open_to_all = {replace(one, message=masked(one.message)) for one in found if one.line not in hidden}
    return sorted({*secrets, *open_to_all}, key=lambda one: (one.line, one.field, one.rule, one.message))


def _unknown(document: Document) -> Finding:
    given = document.root.get("$schema")
    said = f"is {shown(given)}, which is no file of Azure's that is known here"
    message = f"{said if given else 'is missing: it says what the file is'}. Allowed: {ALLOWED}."
    return Finding(document.path, document.line(("$schema",)), "$schema", Rule.SCHEMA, message)


def _of_spec(spec: Spec, tree: Tree, *, loads: bool) -> Iterable[Finding]:
    """Ours say more than Azure's do where both say something of a field."""
    ours = [finding for rule in RULES for finding in rule(spec, tree)]
    said = {finding.field for finding in ours}
    shaped = all(finding.rule is not Rule.SHAPE for finding in ours)
    azures = azure_says.findings(spec) if loads and shaped else ()
    return [*ours, *(finding for finding in azures if not any(_within(field, finding.field) for field in said))]


def _within(field: str, other: str) -> bool:
    """Whether it is the other one, or in it."""
    return field == other or (other != "" and field.startswith((f"{other}.", f"{other}[")))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not disk.is_dir(path):
            yield path
            continue
        inside = list(_inside(path))
        if not inside:
            raise SetupError(
                f"{path} holds no YAML file. Name a file, or a folder such as yaml or environments."
            )
        yield from inside


def _inside(folder: Path) -> Iterator[Path]:
    """Files of Azure's and of its monitor's, but those in hidden folders."""
    for here, folders, inside in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(here, name) for name in sorted(inside) if not name.startswith("."))
        yield from (file for file in files if _is_azures(file) and disk.is_file(file))


def _is_azures(file: Path) -> bool:
    azures = file.suffix in SUFFIXES and not file.stem.startswith(_NOT_AZURES)
    return azures or (file.suffix == ".json" and file.stem.startswith("autoscale"))
