"""Files -> findings."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from llama_endpoints.validate import azure_schema, disk, foreign
from llama_endpoints.validate.document import MOST_BYTES, read
from llama_endpoints.validate.findings import Finding, Level, Rule
from llama_endpoints.validate.rules import (
    assets,
    autoscale,
    batch,
    clusters,
    conda,
    endpoints,
    engines,
    jobs,
    kubernetes,
    limits,
    machines,
    mappings,
    names,
    online,
    references,
    scripts,
    strangers,
    variables,
)
from llama_endpoints.validate.rules.secrets import leaks, masked
from llama_endpoints.validate.spec_files import SUFFIXES, Spec, Tree, around, beside, specs_of
from llama_serving.errors import SetupError

RULES: Final[tuple[Callable[[Spec, Tree], Iterator[Finding]], ...]] = (
    mappings.rules, limits.rules, names.rules, references.rules, scripts.rules, variables.rules, engines.rules, machines.rules,
    online.rules, batch.rules, endpoints.rules, assets.rules, clusters.rules, jobs.rules, kubernetes.rules,
    autoscale.rules, strangers.rules, conda.rules,
)  # fmt: skip


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
        unknown = self.count(Level.INFORMATION)
        return f"{files}: {errors}, {warnings}{f', {unknown} not checked' if unknown else ''}."


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
    named = {path for path in paths if not disk.is_dir(path)}
    files = list(dict.fromkeys(_files(paths)))
    given = tuple(specs_of(file for file in files if disk.is_file(file)))
    trees = _Trees(given)
    found = tuple(finding for file in files for finding in check_file(file, trees.of, is_named=file in named))
    return Report(len(files), found)


def check_file(path: Path, tree_of: Callable[[Path], Tree], *, is_named: bool = True) -> list[Finding]:
    """The findings of one file, by their lines; a file that nobody named, but that lies in a folder, may be anybody's."""
    document, found = read(path)
    if document is None:
        broken = is_named and any(one.rule is not Rule.SHAPE for one in found)  # (a list is somebody's, too)
        return found if broken or _names_azure(path) else [foreign.unreadable(one) for one in found]
    secrets = list(leaks(document))
    spec = Spec.of(document)
    if spec is None:
        found = [foreign.finding(document)]  # (its keys may be numbers, and its tags somebody's own)
    else:
        found += _of_spec(spec, tree_of(path), loads=all(one.rule is Rule.DUPLICATE_KEY for one in found))
    hidden = {secret.line for secret in secrets}  # (no other message may show what stands there)
    open_to_all = {replace(one, message=masked(one.message)) for one in found if one.line not in hidden}
    return sorted({*secrets, *open_to_all}, key=lambda one: (one.line, one.field, one.rule, one.message))


def _names_azure(path: Path) -> bool:
    """Of a file that can't be read as YAML."""
    try:
        with path.open("rb") as file:
            return foreign.names_azure(file.read(MOST_BYTES).decode("utf-8", errors="replace"))
    except (OSError, ValueError):
        return False


def _of_spec(spec: Spec, tree: Tree, *, loads: bool) -> Iterable[Finding]:
    """Ours say more than Azure's do where both say something of a field."""
    ours = [finding for rule in RULES for finding in rule(spec, tree)]
    shaped = all(finding.rule is not Rule.SHAPE for finding in ours)
    azures = azure_schema.findings(spec) if loads and shaped else ()
    return [*ours, *(finding for finding in azures if not _is_said(finding, ours))]


def _is_said(azures: Finding, ours: Sequence[Finding]) -> bool:
    """Whether one of ours says the same, better.

    Where a field may be one of several things Azure's client says what the wrong one of them lacks, and of a file that is not there
    it does not say where it is named.
    """
    said = [one for one in ours if one.level is not Level.INFORMATION]
    if any(_within(one.field, azures.field) for one in said):
        return True
    errors = [one.field for one in said if one.level is Level.ERROR]
    if azures.rule is Rule.UNKNOWN_FIELD:
        return False
    return bool(errors) and (
        not azures.field or any(_alternative(azures.field) == _alternative(one) != "" for one in errors)
    )


def _alternative(field: str) -> str:
    """The field that a place is in, where that may be one of several things; empty for others."""
    first = field.partition(".")[0]
    return first if first in {"environment", "model"} else ""


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
    """YAML, and JSON of Azure's monitor, but what is in hidden folders."""
    for here, folders, inside in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(here, name) for name in sorted(inside) if not name.startswith("."))
        yield from (file for file in files if _is_azures(file) and disk.is_file(file))


def _is_azures(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES or (file.suffix == ".json" and file.stem.startswith("autoscale"))
