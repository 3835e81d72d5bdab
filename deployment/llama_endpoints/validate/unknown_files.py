"""Files of unknown kinds: other Azure files, and YAML unrelated to Azure. Each gets one finding, as information."""

import re
from difflib import get_close_matches
from typing import Final

from llama_endpoints.azure import limits
from llama_endpoints.validate.document import Document
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import ALLOWED, SpecKind, schema_name
from llama_endpoints.validate.values import shown

_NAMES_US: Final = re.compile(
    r"azuremlschemas|\$schema|amlarc\.azureml\.com|Microsoft\.Insights/autoscaleSettings"
)
"""Text that every file of a known kind contains."""
_CLOSE: Final = 0.9
"""How similar a misspelt schema name must be; Azure's other kinds are less similar."""
_OTHER_KINDS: Final = frozenset({
    "automlJob", "pipelineComponent", "parallelComponent", "sparkComponent", "importJob", "kubernetesCompute",
    "pipelineComponentBatchDeployment", "pipelineJob", "sparkJob", "sweepJob", "virtualMachineCompute", "computeInstance", "workspace",
})  # fmt: skip
"""Azure's kinds that are not checked here; none of them is a misspelling."""


def names_azure(text: str) -> bool:
    """Whether an unparsable file looks like one of a known kind."""
    return _NAMES_US.search(text) is not None


def unreadable(finding: Finding) -> Finding:
    """Return the finding for an unparsable file of an unknown kind."""
    message = f"does not look like an Azure ML file, and as YAML it {finding.message}"
    return Finding(finding.file, finding.line, "", Rule.NOT_CHECKED, message)


def finding(document: Document) -> Finding:
    """Return the finding for a file of an unknown kind."""
    given = document.root.get("$schema")
    line = document.line(("$schema",))
    close = _meant(schema_name(given))
    if close:
        return Finding(
            document.path, line, "$schema", Rule.SCHEMA,
            f"is {shown(given)}, which Azure ignores, so the file was not checked. Did you mean {limits.schema(close)}?",
        )  # fmt: skip
    return Finding(document.path, line, "$schema", Rule.NOT_CHECKED, _why(given))


def _meant(name: str) -> str:
    known = [kind for kind in map(str, SpecKind) if kind != name]
    return (
        next(iter(get_close_matches(name, known, n=1, cutoff=_CLOSE)), "") if name not in _OTHER_KINDS else ""
    )


def _why(given: object) -> str:
    if given is None:
        return (
            "is missing, so nothing marks this as an Azure ML file (conda files, CI files and manifests have none). "
            f"If it is one, set {ALLOWED}."
        )
    return f"{shown(given)} is not a known kind of file. Known: {ALLOWED}."
