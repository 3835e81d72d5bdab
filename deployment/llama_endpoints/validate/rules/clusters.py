"""Clusters: what they cost while idle."""

from collections.abc import Iterator

from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import SpecKind
from llama_endpoints.validate.spec_files import SpecFile, SpecTree


def rules(spec: SpecFile, _tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of amlCompute files."""
    if spec.kind is not SpecKind.COMPUTE:
        return
    least, most = spec.number("min_instances", default=0), spec.number("max_instances", default=1)
    if least > most:
        yield spec.find(
            Rule.INSTANCES, ("min_instances",),
            f"is {least}, but max_instances is {most}. It must not exceed max_instances.",
        )  # fmt: skip
    if least > 0:
        yield spec.find(
            Rule.IDLE,
            ("min_instances",),
            f"keeps {least} machines running and billed while idle. Set 0.",
        )
    if spec.text("tier").lower() == "low_priority":
        yield spec.find(
            Rule.PREEMPTION, ("tier",),
            "lets Azure take the machines away at any time; finished rows are kept, the rest restarts. Set "
            "dedicated to avoid this.",
        )  # fmt: skip
