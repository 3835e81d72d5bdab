"""What a deployment asks of a Kubernetes cluster: amounts that it can read, and that fit each other."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from deployment.validate.findings import Finding, Rule
from deployment.validate.kinds import Kind
from deployment.validate.ranges import shown
from deployment.validate.tree import Spec, Tree

GPUS: Final = "nvidia.com/gpu"
_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS: Final[Mapping[str | None, float]] = {
    None: 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_SIDES: Final = ("requests", "limits")
_FORMS: Final[Mapping[str, str]] = {
    "cpu": 'cores, such as "4" or "500m"',
    "memory": 'bytes, such as "64Gi"',
    GPUS: 'a whole number of GPUs, such as "1"',
}


def amount(value: Any) -> float | None:
    """`500m` -> 0.5, `64Gi` -> 68719476736.0; None for what is no amount above 0."""
    match = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    number = float(match[1]) * _UNITS[match[2]] if match else 0.0
    return number if number > 0 else None


def rules(spec: Spec, _tree: Tree) -> Iterator[Finding]:
    """Of Kubernetes deployments."""
    if spec.kind is not Kind.KUBERNETES_DEPLOYMENT:
        return
    for side in _SIDES:
        for name, value in spec.mapping("resources", side).items():
            if name in _FORMS and not _readable(name, value):
                yield spec.find(
                    Rule.RESOURCES, ("resources", side, name), f"must be {_FORMS[name]}, not {shown(value)}."
                )
    for name in _FORMS:
        yield from _agree(spec, name)


def _readable(name: str, value: Any) -> bool:
    number = amount(value)
    return number is not None and (name != GPUS or (number.is_integer() and str(value).isdecimal()))


def _agree(spec: Spec, name: str) -> Iterator[Finding]:
    """Kubernetes lets nobody ask for more than his limit; GPUs are not shared, so that both are the same."""
    place = ("resources", "requests", name)
    asked, limit = (amount(spec.at("resources", side, name)) for side in _SIDES)
    if asked is None or limit is None:
        return
    if asked > limit:
        yield spec.find(
            Rule.RESOURCES, place,
            f"is {shown(spec.at(*place))}, more than its limit of {shown(spec.at('resources', 'limits', name))}. Lower "
            "it, or raise that.",
        )  # fmt: skip
    elif name == GPUS and asked != limit:
        yield spec.find(
            Rule.RESOURCES, place,
            f"is {shown(spec.at(*place))}, and its limit {shown(spec.at('resources', 'limits', name))}. Kubernetes shares "
            "no GPU: set both to the same.",
        )  # fmt: skip
