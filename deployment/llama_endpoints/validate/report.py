"""Check files and collect the findings."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from llama_endpoints.validate import azure_schema, filesystem, unknown_files
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
    unchecked,
    variables,
)
from llama_endpoints.validate.rules.secrets import find_secrets, masked
from llama_endpoints.validate.spec_files import SUFFIXES, SpecFile, SpecTree, around, beside, specs_of
from llama_serving.errors import SetupError

RULES: Final[tuple[Callable[[SpecFile, SpecTree], Iterator[Finding]], ...]] = (
    mappings.rules, limits.rules, names.rules, references.rules, scripts.rules, variables.rules, engines.rules, machines.rules,
    online.rules, batch.rules, endpoints.rules, assets.rules, clusters.rules, jobs.rules, kubernetes.rules,
    autoscale.rules, unchecked.rules, conda.rules,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """The findings, and how many files were checked."""

    files: int
    findings: tuple[Finding, ...]

    def count(self, level: Level) -> int:
        """Return the number of findings of a level."""
        return sum(finding.level is level for finding in self.findings)

    def summary(self) -> str:
        """Return the summary in one line."""
        counts = [
            (self.files, "file"),
            (self.count(Level.ERROR), "error"),
            (self.count(Level.WARNING), "warning"),
        ]
        files, errors, warnings = (f"{number} {noun}{'' if number == 1 else 's'}" for number, noun in counts)
        unknown = self.count(Level.INFORMATION)
        return f"{files}: {errors}, {warnings}{f', {unknown} not checked' if unknown else ''}."


@dataclass(slots=True)
class _TreeCache:
    """Caches the files around each folder."""

    given: tuple[SpecFile, ...]
    known: dict[Path, tuple[SpecFile, ...]] = field(default_factory=dict)

    def of(self, path: Path) -> SpecTree:
        """Return the files around a path. Files given by the user come first."""
        root = around(path)
        if root not in self.known:
            self.known[root] = tuple(specs_of(beside(root)))
        return SpecTree((*self.given, *self.known[root]))


def check(paths: Sequence[Path]) -> Report:
    """Return all findings of files and folders, ordered by file and line.

    Raises:
        SetupError: a folder has no such file, or azure-ai-ml is not installed.
    """
    named = {path for path in paths if not filesystem.is_dir(path)}
    files = list(dict.fromkeys(_files(paths)))
    given = tuple(specs_of(file for file in files if filesystem.is_file(file)))
    trees = _TreeCache(given)
    found = tuple(finding for file in files for finding in check_file(file, trees.of, is_named=file in named))
    return Report(len(files), found)


def check_file(path: Path, tree_of: Callable[[Path], SpecTree], *, is_named: bool = True) -> list[Finding]:
    """Return one file's findings by line. A file that was found in a folder, not named, may be unrelated to Azure."""
    document, found = read(path)
    if document is None:
        broken = is_named and any(
            one.rule is not Rule.SHAPE for one in found
        )  # a list at the root is not an Azure file
        return found if broken or _names_azure(path) else [unknown_files.unreadable(one) for one in found]
    secrets = list(find_secrets(document))
    spec = SpecFile.of(document)
    if spec is None:
        found = [
            unknown_files.finding(document)
        ]  # findings about the YAML do not apply to files of other programs
    else:
        found += _of_spec(spec, tree_of(path), loads=all(one.rule is Rule.DUPLICATE_KEY for one in found))
    hidden = {secret.line for secret in secrets}  # no other message may quote these lines
    open_to_all = {replace(one, message=masked(one.message)) for one in found if one.line not in hidden}
    return sorted({*secrets, *open_to_all}, key=lambda one: (one.line, one.field, one.rule, one.message))


def _names_azure(path: Path) -> bool:
    """Whether a file that cannot be parsed looks like an Azure file."""
    try:
        with path.open("rb") as file:
            return unknown_files.names_azure(file.read(MOST_BYTES).decode("utf-8", errors="replace"))
    except (OSError, ValueError):
        return False


def _of_spec(spec: SpecFile, tree: SpecTree, *, loads: bool) -> Iterable[Finding]:
    """Yield a file's findings. Our rules replace Azure's findings about the same field."""
    ours = [finding for rule in RULES for finding in rule(spec, tree)]
    shaped = all(finding.rule is not Rule.SHAPE for finding in ours)
    azures = azure_schema.findings(spec) if loads and shaped else ()
    return [*ours, *(finding for finding in azures if not _is_said(finding, ours))]


def _is_said(azures: Finding, ours: Sequence[Finding]) -> bool:
    """Whether one of our findings covers Azure's.

    For a field with several allowed forms, azure-ai-ml reports what the wrong form lacks. For a missing file it does not say which
    field refers to it.
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
    """Return the field with several allowed forms that contains a field; empty for others."""
    first = field.partition(".")[0]
    return first if first in {"environment", "model"} else ""


def _within(field: str, other: str) -> bool:
    """Whether a field is the other one or inside it."""
    return field == other or (other != "" and field.startswith((f"{other}.", f"{other}[")))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not filesystem.is_dir(path):
            yield path
            continue
        inside = list(_inside(path))
        if not inside:
            raise SetupError(
                f"{path} contains no YAML file. Pass a file, or a folder such as yaml or environments."
            )
        yield from inside


def _inside(folder: Path) -> Iterator[Path]:
    """Yield a folder's YAML files and Azure Monitor JSON files, without hidden folders."""
    for here, folders, inside in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(here, name) for name in sorted(inside) if not name.startswith("."))
        yield from (file for file in files if _is_azures(file) and filesystem.is_file(file))


def _is_azures(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES or (file.suffix == ".json" and file.stem.startswith("autoscale"))
