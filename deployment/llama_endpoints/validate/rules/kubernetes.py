"""What a deployment asks of a Kubernetes cluster, by itself and by its type of instance: amounts that can be read, and fit."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from llama_endpoints.azure.limits import DEFAULT_INSTANCE_TYPE, INSTANCE_TYPES, NODE_SIZE
from llama_endpoints.planning.skus import azure_size
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import Kind
from llama_endpoints.validate.machines import GPUS, instance_type
from llama_endpoints.validate.ours import is_ours
from llama_endpoints.validate.spec_files import Spec, Tree
from llama_endpoints.validate.values import shown

_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS: Final[Mapping[str | None, float]] = {
    None: 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_SIDES: Final = ("requests", "limits")
_RESOURCES: Final[Mapping[Kind, Place]] = {
    Kind.KUBERNETES_DEPLOYMENT: ("resources",),
    Kind.INSTANCE_TYPE: ("spec", "resources"),
}
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


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of Kubernetes deployments, and of the cluster's types of instances."""
    place = _RESOURCES.get(spec.kind)
    if place is None:
        return
    if spec.kind is Kind.INSTANCE_TYPE or spec.mapping(*place):
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
            "stands among the requests. Azure takes GPUs among the limits only: move it there.",
        )  # fmt: skip
    yield from _of_a_node(spec) if spec.kind is Kind.INSTANCE_TYPE else _type(spec, tree)


def _missing(spec: Spec, place: Place) -> Iterator[Finding]:
    """A deployment needs limits only where it needs a GPU."""
    needed = [("requests", "cpu"), ("requests", "memory")]
    if spec.kind is Kind.INSTANCE_TYPE or GPUS in spec.mapping(*place, "limits"):
        needed += [("limits", "cpu"), ("limits", "memory")]
    for side, name in needed:
        if spec.at(*place, side, name) is None:
            yield spec.find(
                Rule.RESOURCES, (*place, side, name), f"is missing, and Azure requires it: {_FORMS[name]}."
            )


def _readable(spec: Spec, name: str, value: Any) -> bool:
    if spec.kind is Kind.INSTANCE_TYPE and name == GPUS and type(value) is int:
        return value >= 0
    number = amount(value)
    return number is not None and (name != GPUS or (number.is_integer() and str(value).isdecimal()))


def _agree(spec: Spec, place: Place, name: str) -> Iterator[Finding]:
    """Kubernetes lets nobody ask for more than his limit."""
    asked, limit = (amount(spec.at(*place, side, name)) for side in _SIDES)
    if asked is not None and limit is not None and asked > limit:
        yield spec.find(
            Rule.RESOURCES, (*place, "requests", name),
            f"is {shown(spec.at(*place, 'requests', name))}, more than its limit of "
            f"{shown(spec.at(*place, 'limits', name))}. Lower it, or raise that.",
        )  # fmt: skip


def _of_a_node(spec: Spec) -> Iterator[Finding]:
    sku = azure_size(spec.text("spec", "nodeSelector", NODE_SIZE))
    if sku is None:
        return
    for name, has in {"cpu": sku.cores, "memory": sku.ram_gib * _UNITS["Gi"]}.items():
        place = ("spec", "resources", "requests", name)
        asked = amount(spec.at(*place))
        if asked is not None and asked >= has:
            yield spec.find(
                Rule.RESOURCES, place,
                f"is {shown(spec.at(*place))}: {sku.name} has {sku.cores} cores and {sku.ram_gib} GiB, and "
                "keeps some, so that it would wait for ever. Ask for less.",
            )  # fmt: skip


def _type(spec: Spec, tree: Tree) -> Iterator[Finding]:
    name, made = spec.text("instance_type"), instance_type(spec, tree)
    if not name and is_ours(spec, tree):
        yield spec.find(
            Rule.INSTANCE_TYPE, ("instance_type",),
            f"is missing, and then it is {DEFAULT_INSTANCE_TYPE}: 2 CPUs, 2 GiB and no GPU. Name one of the cluster's; "
            "`llama-endpoints render` writes one for a machine.",
        )  # fmt: skip
    elif name and not INSTANCE_TYPES.take(name):
        yield spec.find(
            Rule.INSTANCE_TYPE, ("instance_type",),
            f"must be the name of one of the cluster's types, {INSTANCE_TYPES.allowed}, not {shown(name)}.",
        )  # fmt: skip
    if made is None:
        return
    if is_ours(spec, tree) and not made.at("spec", "resources", "limits", GPUS):
        yield spec.find(
            Rule.INSTANCE_TYPE, ("instance_type",),
            f"names {name}, which has no GPU. Give it {GPUS} among its limits, or name another.",
        )  # fmt: skip
    for resource in _FORMS:
        asked, most = (amount(str(one.at(*_RESOURCES[one.kind], "limits", resource))) for one in (spec, made))
        if asked is not None and most is not None and asked > most:
            yield spec.find(
                Rule.RESOURCES, ("resources", "limits", resource),
                f"is {asked:g}, and {name} has {most:g}: Azure refuses more than the type's. Leave resources out, and "
                "it is what the type has.",
            )  # fmt: skip
