"""A file of a known kind, and the files that lie around it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from llama_endpoints.validate.document import Document, Place, dotted, read
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import Kind, kind_of

FOLDERS: Final = ("yaml", "environments")
SUFFIXES: Final = (".yml", ".yaml")
MOST_FILES: Final = 1000
"""Beside a file; a tree of Azure's has some dozens."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A file whose kind is known."""

    document: Document
    kind: Kind

    @classmethod
    def of(cls, document: Document) -> "Spec | None":
        """None where its kind is not known."""
        kind = kind_of(document.root)
        return None if kind is None else cls(document, kind)

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.document.path

    @property
    def name(self) -> str:
        """Of what it describes."""
        return str(self.at("name") or self.at("metadata", "name") or "")

    def at(self, *place: str | int) -> Any:
        """The value there, or None."""
        return self.document.at(*place)

    def mapping(self, *place: str | int) -> Mapping[str, Any]:
        """The mapping there, or an empty one."""
        value = self.document.at(*place)
        return value if isinstance(value, Mapping) else {}

    def text(self, *place: str | int) -> str:
        """The string there, or an empty one."""
        value = self.document.at(*place)
        return value if isinstance(value, str) else ""

    def number(self, *place: str | int, default: int) -> int:
        """The integer there, or what Azure takes; what is no integer is another rule's."""
        value = self.document.at(*place)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def find(self, rule: Rule, place: Place, message: str) -> Finding:
        """Something is wrong there."""
        return Finding(self.path, self.document.line(place), dotted(place), rule, message)


@dataclass(frozen=True, slots=True)
class Tree:
    """The files around the one that is looked at, and itself."""

    specs: tuple[Spec, ...] = ()

    def of_kind(self, *kinds: Kind) -> Iterator[Spec]:
        """All of these kinds."""
        return (spec for spec in self.specs if spec.kind in kinds)

    def named(self, name: str, *kinds: Kind) -> Spec | None:
        """The first of these kinds and that name."""
        return next((spec for spec in self.of_kind(*kinds) if spec.name == name), None)


def around(path: Path) -> Path:
    """The folder that holds `yaml/` and `environments/`, where a file lies below one of them; else its own."""
    here = path.absolute()
    return next((folder.parent for folder in here.parents if folder.name in FOLDERS), here.parent)


def beside(root: Path) -> Iterator[Path]:
    """The files that others may name: all below `yaml/` and `environments/`, or those of the folder itself."""
    folders = [root / name for name in FOLDERS if (root / name).is_dir()]
    found = (file for folder in folders for file in sorted(folder.rglob("*.[yY]*[mM][lL]")))
    files = found if folders else iter(sorted(root.glob("*.[yY]*[mM][lL]")))
    return islice((file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()), MOST_FILES)


def specs_of(paths: Iterable[Path]) -> Iterator[Spec]:
    """Those among the files whose kind is known; what is wrong with others is said where they are looked at."""
    for path in paths:
        document, _ = read(path)
        spec = Spec.of(document) if document else None
        if spec:
            yield spec
