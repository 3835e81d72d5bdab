"""Clusters of machines: what they cost at rest."""

from collections.abc import Iterator

from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import Kind
from llama_endpoints.validate.spec_files import Spec, Tree


def rules(spec: Spec, _tree: Tree) -> Iterator[Finding]:
    """Of amlCompute."""
    if spec.kind is not Kind.COMPUTE:
        return
    least, most = spec.number("min_instances", default=0), spec.number("max_instances", default=1)
    if least > most:
        yield spec.find(
            Rule.INSTANCES, ("min_instances",),
            f"is {least}, and max_instances is {most}. The first must not be above the second.",
        )  # fmt: skip
    if least > 0:
        yield spec.find(
            Rule.IDLE,
            ("min_instances",),
            f"keeps {least} machines that are paid for, also where nothing runs. Set 0.",
        )
    if spec.text("tier").lower() == "low_priority":
        yield spec.find(
            Rule.PREEMPTION, ("tier",),
            "lets Azure take the machines away at any time; what is done is kept, the rest begins anew. Set "
            "dedicated where that is not wanted.",
        )  # fmt: skip
