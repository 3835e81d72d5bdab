"""Endpoints: authentication, and traffic to deployments that do not exist yet."""

from collections.abc import Iterator
from typing import Final

from llama_endpoints.azure.limits import IDENTITIES
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import ENDPOINTS, ONLINE_ENDPOINTS, SpecKind
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import read_by_azure, shown, within

MOST_MIRRORED: Final = 50


def rules(spec: SpecFile, _tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of endpoints."""
    if spec.kind in ENDPOINTS:
        yield from _identity(spec)
    if spec.kind in ONLINE_ENDPOINTS:
        yield from _traffic(spec)
        yield from _mirror(spec)
    if spec.kind is SpecKind.KUBERNETES_ENDPOINT and not spec.text("compute"):
        yield spec.find(
            Rule.REFERENCE, ("compute",),
            "must be azureml:NAME of an attached Kubernetes cluster. Without it, azure-ai-ml creates a managed endpoint.",
        )  # fmt: skip
    if spec.kind is SpecKind.BATCH_ENDPOINT and spec.at("defaults", "deployment_name") is not None:
        yield spec.find(
            Rule.CREATION, ("defaults", "deployment_name"),
            "cannot be set before that deployment exists. Remove it, and create the deployment with "
            "--set-default.",
        )  # fmt: skip


def _traffic(spec: SpecFile) -> Iterator[Finding]:
    for name in spec.mapping("traffic"):
        yield from _share(spec, ("traffic", name), 100, Rule.TRAFFIC, "")
    shares = map(read_by_azure, spec.mapping("traffic").values())
    total = sum(share for share in shares if share is not None and within(share, 0, 100))
    if total not in (0, 100):
        yield spec.find(Rule.TRAFFIC, ("traffic",), f"sums to {total}. It must be 0 or 100.")
    if total:
        yield spec.find(
            Rule.CREATION, ("traffic",),
            "cannot be set when the endpoint is created, since no deployment exists yet. Remove it. Create the first deployment with "
            "--all-traffic, or run `az ml online-endpoint update --traffic` later.",
        )  # fmt: skip


def _mirror(spec: SpecFile) -> Iterator[Finding]:
    shares = spec.mapping("mirror_traffic")
    if len(shares) > 1:
        yield spec.find(Rule.MIRROR, ("mirror_traffic",), f"has {len(shares)} deployments. It must have one.")
    for name in shares:
        meaning = " (percent of the traffic that is mirrored)"
        yield from _share(spec, ("mirror_traffic", name), MOST_MIRRORED, Rule.MIRROR, meaning)
        if spec.mapping("traffic").get(name):
            yield spec.find(
                Rule.MIRROR,
                ("mirror_traffic", name),
                "also has live traffic. Mirror to a deployment without traffic.",
            )


def _share(spec: SpecFile, place: Place, most: int, rule: Rule, meaning: str) -> Iterator[Finding]:
    value = spec.at(*place)
    share = read_by_azure(value)
    if share is None or not within(share, 0, most):
        yield spec.find(rule, place, f"must be an integer from 0 to {most}{meaning}, not {shown(value)}.")
    elif share is not value:
        yield spec.find(
            Rule.NUMBER_TYPE,
            place,
            f"is {shown(value)} in YAML, which azure-ai-ml reads as {share}. Write {share}.",
        )


def _identity(spec: SpecFile) -> Iterator[Finding]:
    kind, given = spec.text("identity", "type"), spec.at("identity", "user_assigned_identities")
    if kind == "user_assigned" and not given:
        yield spec.find(
            Rule.IDENTITY, ("identity",),
            "is user_assigned without an identity. Add user_assigned_identities with one resource_id.",
        )  # fmt: skip
    if kind and kind != "user_assigned" and given:
        yield spec.find(
            Rule.IDENTITY, ("identity", "user_assigned_identities"),
            f"conflicts with type: {kind}. Remove it, or set type: user_assigned.",
        )  # fmt: skip
    for index, one in enumerate(given if isinstance(given, list) else []):
        name = one.get("resource_id") if isinstance(one, dict) else None
        if not IDENTITIES.take(name):
            yield spec.find(
                Rule.IDENTITY, ("identity", "user_assigned_identities", index),
                f"must be resource_id: {IDENTITIES.allowed}, not {shown(name)}.",
            )  # fmt: skip
