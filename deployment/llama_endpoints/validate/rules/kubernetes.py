"""Kubernetes resources of deployments and instance types: the amounts are readable, and fit on the node."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from llama_endpoints.azure.limits import DEFAULT_INSTANCE_TYPE, INSTANCE_TYPES, NODE_SIZE
from llama_endpoints.planning.skus import azure_size
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import SpecKind
from llama_endpoints.validate.llama_deployments import runs_our_code
from llama_endpoints.validate.machines import GPUS, instance_type
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import shown

_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS: Final[Mapping[str | None, float]] = {
    None: 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_SIDES: Final = ("requests", "limits")
_RESOURCES: Final[Mapping[SpecKind, Place]] = {
    SpecKind.KUBERNETES_DEPLOYMENT: ("resources",),
    SpecKind.INSTANCE_TYPE: ("spec", "resources"),
}
_FORMS: Final[Mapping[str, str]] = {
    "cpu": 'cores, such as "4" or "500m"',
    "memory": 'bytes, such as "64Gi"',
    GPUS: 'a whole number of GPUs, such as "1"',
}


def amount(value: Any) -> float | None:
    """Parse an amount: `500m` -> 0.5, `64Gi` -> 68719476736.0; None unless it is positive."""
    match = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    number = float(match[1]) * _UNITS[match[2]] if match else 0.0
    return number if number > 0 else None


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of Kubernetes deployments and of instance types."""
    place = _RESOURCES.get(spec.kind)
    if place is None:
        return
    if spec.kind is SpecKind.INSTANCE_TYPE or spec.mapping(*place):
        yield from _missing(spec, place)
    for side in _SIDES:
        for name, value in spec.mapping(*place, side).items():
            if name in _FORMS and not _readable(spec, name, value):
                yield spec.find(
                    Rule.RESOURCES, (*place, side, name), f"must be {_FORMS[name]}, not {shown(value)}."
                )
    for name in ("cpu", "memory"):
        yield from _agree(spec, place, name)
    if GPUS in spec.mapping(*place, "requests"):
        yield spec.find(
            Rule.RESOURCES, (*place, "requests", GPUS),
            "is in requests, but Azure reads GPUs from limits only: move it there.",
        )  # fmt: skip
    yield from _of_a_node(spec) if spec.kind is SpecKind.INSTANCE_TYPE else _type(spec, tree)


def _missing(spec: SpecFile, place: Place) -> Iterator[Finding]:
    """Yield findings for missing amounts. Limits are required only for a GPU."""
    needed = [("requests", "cpu"), ("requests", "memory")]
    if spec.kind is SpecKind.INSTANCE_TYPE or GPUS in spec.mapping(*place, "limits"):
        needed += [("limits", "cpu"), ("limits", "memory")]
    for side, name in needed:
        if spec.at(*place, side, name) is None:
            yield spec.find(Rule.RESOURCES, (*place, side, name), f"is missing and required: {_FORMS[name]}.")


def _readable(spec: SpecFile, name: str, value: Any) -> bool:
    if spec.kind is SpecKind.INSTANCE_TYPE and name == GPUS and type(value) is int:
        return value >= 0
    number = amount(value)
    return number is not None and (name != GPUS or (number.is_integer() and str(value).isdecimal()))


def _agree(spec: SpecFile, place: Place, name: str) -> Iterator[Finding]:
    """Yield a finding if a request exceeds its limit."""
    requested, limit = (amount(spec.at(*place, side, name)) for side in _SIDES)
    if requested is not None and limit is not None and requested > limit:
        yield spec.find(
            Rule.RESOURCES, (*place, "requests", name),
            f"is {shown(spec.at(*place, 'requests', name))}, but the limit is "
            f"{shown(spec.at(*place, 'limits', name))}. Lower it, or raise the limit.",
        )  # fmt: skip


def _of_a_node(spec: SpecFile) -> Iterator[Finding]:
    sku = azure_size(spec.text("spec", "nodeSelector", NODE_SIZE))
    if sku is None:
        return
    for name, has in {"cpu": sku.cores, "memory": sku.ram_gib * _UNITS["Gi"]}.items():
        place = ("spec", "resources", "requests", name)
        requested = amount(spec.at(*place))
        if requested is not None and requested >= has:
            yield spec.find(
                Rule.RESOURCES, place,
                f"is {shown(spec.at(*place))}, but {sku.name} has {sku.cores} cores and {sku.ram_gib} GiB, of which some are reserved: "
                "the pod would never be scheduled. Request less.",
            )  # fmt: skip


def _type(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    name, made = spec.text("instance_type"), instance_type(spec, tree)
    if not name and runs_our_code(spec, tree):
        yield spec.find(
            Rule.INSTANCE_TYPE, ("instance_type",),
            f"is missing; the default is {DEFAULT_INSTANCE_TYPE}: 2 CPUs, 2 GiB and no GPU. Set one of the cluster's instance types; "
            "`llama-endpoints render` writes one for a machine.",
        )  # fmt: skip
    elif name and not INSTANCE_TYPES.take(name):
        yield spec.find(
            Rule.INSTANCE_TYPE, ("instance_type",),
            f"must be an instance type of the cluster, {INSTANCE_TYPES.allowed}, not {shown(name)}.",
        )  # fmt: skip
    if made is None:
        return
    if runs_our_code(spec, tree) and not made.at("spec", "resources", "limits", GPUS):
        yield spec.find(
            Rule.INSTANCE_TYPE, ("instance_type",),
            f"is {name}, which has no GPU. Add {GPUS} to its limits, or use another type.",
        )  # fmt: skip
    for resource in _FORMS:
        requested, most = (
            amount(str(one.at(*_RESOURCES[one.kind], "limits", resource))) for one in (spec, made)
        )
        if requested is not None and most is not None and requested > most:
            yield spec.find(
                Rule.RESOURCES, ("resources", "limits", resource),
                f"is {requested:g}, but {name} has {most:g}, and Azure refuses more. Remove resources to use the type's "
                "amounts.",
            )  # fmt: skip
