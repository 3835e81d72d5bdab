"""Files of known kinds, and the files around them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from llama_endpoints.validate.document import Document, Place, dotted, read
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import SpecKind, kind_of

FOLDERS: Final = ("yaml", "environments")
SUFFIXES: Final = (".yml", ".yaml")
MOST_FILES: Final = 1000
"""The most files read around a file; a usual tree has some dozens."""


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A file of a known kind."""

    document: Document
    kind: SpecKind

    @classmethod
    def of(cls, document: Document) -> "SpecFile | None":
        """Return the spec of a document; None if its kind is unknown."""
        kind = kind_of(document.root)
        return None if kind is None else cls(document, kind)

    @property
    def path(self) -> Path:
        """The file's path."""
        return self.document.path

    @property
    def name(self) -> str:
        """The name of what it describes."""
        return str(self.at("name") or self.at("metadata", "name") or "")

    def at(self, *place: str | int) -> Any:
        """Return the value at a place, or None."""
        return self.document.at(*place)

    def mapping(self, *place: str | int) -> Mapping[str, Any]:
        """Return the mapping at a place, or an empty one."""
        value = self.document.at(*place)
        return value if isinstance(value, Mapping) else {}

    def text(self, *place: str | int) -> str:
        """Return the string at a place, or an empty one."""
        value = self.document.at(*place)
        return value if isinstance(value, str) else ""

    def number(self, *place: str | int, default: int) -> int:
        """Return the integer at a place, as Azure reads it, or the default. Other rules report values that are not integers."""
        value = self.document.at(*place)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def find(self, rule: Rule, place: Place, message: str) -> Finding:
        """Return a finding at a place of this file."""
        return Finding(self.path, self.document.line(place), dotted(place), rule, message)


@dataclass(frozen=True, slots=True)
class SpecTree:
    """A file and the files around it."""

    specs: tuple[SpecFile, ...] = ()

    def of_kind(self, *kinds: SpecKind) -> Iterator[SpecFile]:
        """Yield the specs of these kinds."""
        return (spec for spec in self.specs if spec.kind in kinds)

    def named(self, name: str, *kinds: SpecKind) -> SpecFile | None:
        """Return the first spec of these kinds with that name."""
        return next((spec for spec in self.of_kind(*kinds) if spec.name == name), None)


def around(path: Path) -> Path:
    """Return the folder that holds `yaml/` and `environments/` if the file is below one of them, else the file's folder."""
    here = path.absolute()
    return next((folder.parent for folder in here.parents if folder.name in FOLDERS), here.parent)


def beside(root: Path) -> Iterator[Path]:
    """Yield the files that others may refer to: all below `yaml/` and `environments/`, or those in the folder itself."""
    folders = [root / name for name in FOLDERS if (root / name).is_dir()]
    found = (file for folder in folders for file in sorted(folder.rglob("*.[yY]*[mM][lL]")))
    files = found if folders else iter(sorted(root.glob("*.[yY]*[mM][lL]")))
    return islice((file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()), MOST_FILES)


def specs_of(paths: Iterable[Path]) -> Iterator[SpecFile]:
    """Yield the specs among the files. Other files are reported where they are checked themselves."""
    for path in paths:
        document, _ = read(path)
        spec = SpecFile.of(document) if document else None
        if spec:
            yield spec
