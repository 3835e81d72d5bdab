"""Names and versions."""

import re
from collections.abc import Iterator
from typing import Any, Final

from deployment.validate.findings import Finding, Rule
from deployment.validate.kinds import ASSETS, DEPLOYMENTS, ENDPOINTS, Kind
from deployment.validate.ranges import article, shown
from deployment.validate.tree import Spec, Tree

_SHORT: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")
_LONG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,29}")
SHORT_NAMED: Final = (*ENDPOINTS, *DEPLOYMENTS, Kind.COMPUTE)


def rules(spec: Spec, _tree: Tree) -> Iterator[Finding]:
    """What Azure would refuse as a name or a version, or would take as another one."""
    if spec.kind in SHORT_NAMED:
        yield from _name(
            spec, _SHORT, "3 to 32 letters, digits and hyphens, the first a letter, the last no hyphen"
        )
    if spec.kind in ASSETS:
        yield from _name(
            spec, _LONG, "1 to 255 letters, digits, dots, hyphens and underscores, the first a letter or digit"
        )
        yield from _version(spec, spec.at("version"))


def _name(spec: Spec, pattern: re.Pattern[str], allowed: str) -> Iterator[Finding]:
    name = spec.at("name")
    if not isinstance(name, str) or not pattern.fullmatch(name):
        yield spec.find(Rule.NAME, ("name",), f"must be {allowed}, not {shown(name)}.")


def _version(spec: Spec, version: Any) -> Iterator[Finding]:
    if version is None:
        yield spec.find(
            Rule.VERSION, ("version",),
            'is missing, and Azure would count up at each creation. Write one, such as "1".',
        )  # fmt: skip
    elif not isinstance(version, str):
        yield spec.find(
            Rule.VERSION, ("version",),
            f'is {shown(version)}, {article(version)} to YAML, for which 1.10 is 1.1. Put it into quotes: '
            f'"{version}".',
        )  # fmt: skip
    elif version == "latest" or not _VERSION.fullmatch(version):
        yield spec.find(
            Rule.VERSION, ("version",),
            'must be 1 to 30 letters, digits, dots, hyphens and underscores, and not "latest"; it is '
            f'{shown(version)}.',
        )  # fmt: skip
