"""Names and versions."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from llama_endpoints.azure import limits
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import ASSETS, DEPLOYMENTS, ENDPOINTS, SpecKind
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import article, shown

_ASSETS: Final = limits.Names(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"),
    "1 to 255 letters, digits, dots, hyphens and underscores, the first a letter or digit",
)
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,29}")
NAMES: Final[Mapping[SpecKind, limits.Names]] = {
    **dict.fromkeys((*ENDPOINTS, *DEPLOYMENTS), limits.ENDPOINTS),
    **dict.fromkeys(ASSETS, _ASSETS),
    SpecKind.COMPUTE: limits.COMPUTES,
    SpecKind.INSTANCE_TYPE: limits.INSTANCE_TYPES,
}
_OPTIONS: Final = frozenset(NAMES) - {SpecKind.INSTANCE_TYPE}
"""Kinds whose `az ml` commands also take the name as an option."""


def rules(spec: SpecFile, _tree: SpecTree) -> Iterator[Finding]:
    """Yield findings for names and versions that Azure refuses or reads as another one."""
    names = NAMES.get(spec.kind)
    place = ("metadata", "name") if spec.kind is SpecKind.INSTANCE_TYPE else ("name",)
    if names:
        yield from _name(spec, place, names)
    if spec.kind in DEPLOYMENTS:
        yield from _name(spec, ("endpoint_name",), limits.ENDPOINTS)
    if spec.kind in ASSETS:
        yield from _version(spec, spec.at("version"))
    if spec.kind is SpecKind.KUBERNETES_DEPLOYMENT:
        yield from _together(spec)


def _name(spec: SpecFile, place: Place, names: limits.Names) -> Iterator[Finding]:
    value = spec.at(*place)
    if value is None and spec.kind in _OPTIONS and place not in spec.document.lines:
        option = "--endpoint-name" if place == ("endpoint_name",) else "--name"
        yield spec.find(
            Rule.GIVEN_LATER, place,
            f"is missing, so each command must give it ({option}, or --set {place[0]}=...). Set it, so that "
            "references can be checked.",
        )  # fmt: skip
    elif not names.take(value):
        yield spec.find(Rule.NAME, place, f"must be {names.allowed}, not {shown(value)}.")


def _together(spec: SpecFile) -> Iterator[Finding]:
    long = len(spec.name) + len(spec.text("endpoint_name"))
    if long > limits.MOST_TOGETHER:
        yield spec.find(
            Rule.NAME, ("name",),
            f"and endpoint_name have {long} characters. On Kubernetes, together they may have at most {limits.MOST_TOGETHER}: "
            "shorten one.",
        )  # fmt: skip


def _version(spec: SpecFile, version: Any) -> Iterator[Finding]:
    if version is None and ("version",) not in spec.document.lines:
        yield spec.find(
            Rule.UNPINNED, ("version",),
            'is missing, so Azure increments it at each creation. Set one, such as "1".',
        )  # fmt: skip
    elif isinstance(version, float):
        yield spec.find(
            Rule.NUMBER_TYPE, ("version",),
            f"is {shown(version)}, {article(version)} in YAML, in which 1.10 equals 1.1. Quote it.",
        )  # fmt: skip
    elif not _is_version(version):
        yield spec.find(
            Rule.VERSION, ("version",),
            'must be 1 to 30 letters, digits, dots, hyphens and underscores, and not "latest"; it is '
            f'{shown(version)}.',
        )  # fmt: skip


def _is_version(version: Any) -> bool:
    """Whether it is a version; azure-ai-ml converts numbers to strings."""
    if isinstance(version, bool) or not isinstance(version, str | int):
        return False
    return version != "latest" and _VERSION.fullmatch(str(version)) is not None
