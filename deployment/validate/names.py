"""Names and versions."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from deployment import limits
from deployment.validate.findings import Finding, Rule
from deployment.validate.kinds import ASSETS, DEPLOYMENTS, ENDPOINTS, Kind
from deployment.validate.ranges import article, shown
from deployment.validate.tree import Spec, Tree

_ASSETS: Final = limits.Names(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"),
    "1 to 255 letters, digits, dots, hyphens and underscores, the first a letter or digit",
)
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,29}")
NAMES: Final[Mapping[Kind, limits.Names]] = {
    **dict.fromkeys((*ENDPOINTS, *DEPLOYMENTS), limits.ENDPOINTS),
    **dict.fromkeys(ASSETS, _ASSETS),
    Kind.COMPUTE: limits.COMPUTES,
    Kind.INSTANCE_TYPE: limits.INSTANCE_TYPES,
}


def rules(spec: Spec, _tree: Tree) -> Iterator[Finding]:
    """What Azure would refuse as a name or a version, or would take as another one."""
    names = NAMES.get(spec.kind)
    place = ("metadata", "name") if spec.kind is Kind.INSTANCE_TYPE else ("name",)
    if names and not names.take(spec.at(*place)):
        yield spec.find(Rule.NAME, place, f"must be {names.allowed}, not {shown(spec.at(*place))}.")
    if spec.kind in ASSETS:
        yield from _version(spec, spec.at("version"))
    if spec.kind is Kind.KUBERNETES_DEPLOYMENT:
        yield from _together(spec)


def _together(spec: Spec) -> Iterator[Finding]:
    long = len(spec.name) + len(spec.text("endpoint_name"))
    if long > limits.MOST_TOGETHER:
        yield spec.find(
            Rule.NAME, ("name",),
            f"and endpoint_name have {long} characters. On Kubernetes they must have {limits.MOST_TOGETHER} together at "
            "most: shorten one.",
        )  # fmt: skip


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
