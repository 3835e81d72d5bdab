"""What a Dockerfile sets: base images, variables, ports and the user."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_endpoints.validate.spec_files import SpecFile

_PORTS: Final = re.compile(
    r"""^EXPOSE\s+(\d+) | --(?:port|bind)["']?[=,\s]\s*["']?(?:[^"'\s:]*:)?(\d+)""", re.MULTILINE | re.VERBOSE
)


@dataclass(frozen=True, slots=True)
class Image:
    """The facts of a Dockerfile.

    Attributes:
        bases: the image of each FROM, except its own stages.
        variables: the variables of ENV.
        ports: the ports it exposes or listens on.
        user: the last USER.
    """

    bases: tuple[str, ...]
    variables: Mapping[str, str]
    ports: frozenset[int]
    user: str

    @classmethod
    def of(cls, text: str) -> "Image":
        """Parse a Dockerfile."""
        lines = list(_instructions(text))
        return cls(
            bases=tuple(_bases(lines)),
            variables={
                name: value for word, rest in lines if word == "ENV" for name, value in _variables(rest)
            },
            ports=frozenset(int(next(filter(None, found))) for found in _PORTS.findall(text)),
            user=next((rest for word, rest in reversed(lines) if word == "USER"), "root"),
        )

    @classmethod
    def built_by(cls, environment: SpecFile, *prefix: str) -> "Image | None":
        """Return the image that an environment builds; None if it builds none, or the Dockerfile does not exist."""
        path = dockerfile(environment, *prefix)
        try:
            return cls.of(path.read_text(encoding="utf-8")) if path else None
        except (OSError, ValueError):
            return None


def dockerfile(spec: SpecFile, *prefix: str) -> Path | None:
    """Return the path of a build's Dockerfile; None if nothing is built, or not from a local folder."""
    folder = spec.text(*prefix, "build", "path")
    if not folder or "://" in folder:
        return None
    return spec.path.parent / folder / (spec.text(*prefix, "build", "dockerfile_path") or "Dockerfile")


def tagged(image: str) -> bool:
    """Whether an image reference fixes a version."""
    name, at, digest = image.partition("@")
    if at:
        return digest.startswith("sha256:")
    _, colon, tag = name.rpartition("/")[2].partition(":")
    return bool(colon) and tag not in {"", "latest"}


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    whole = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in whole.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        yield word.upper(), rest.strip()


def _bases(lines: list[tuple[str, str]]) -> Iterator[str]:
    stages: set[str] = {"scratch"}
    for word, rest in lines:
        if word == "FROM":
            names = [name for name in rest.split() if not name.startswith("--")]
            if names and names[0].lower() not in stages:
                yield names[0]
            stages.update(name.lower() for name in names[2:])  # FROM base AS stage


def _variables(rest: str) -> Iterator[tuple[str, str]]:
    try:
        words = shlex.split(rest)
    except ValueError:
        return
    if words and "=" not in words[0]:  # the old form, `ENV NAME value`
        yield words[0], " ".join(words[1:])
        return
    for word in words:
        name, _, value = word.partition("=")
        yield name, value
