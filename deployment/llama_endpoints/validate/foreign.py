"""Files that are not ours to know: other kinds of Azure's, and YAML that is nobody's of Azure. Said once, as information."""

import re
from difflib import get_close_matches
from typing import Final

from llama_endpoints.azure import limits
from llama_endpoints.validate.document import Document
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import ALLOWED, Kind, schema_name
from llama_endpoints.validate.values import shown

_NAMES_US: Final = re.compile(
    r"azuremlschemas|\$schema|amlarc\.azureml\.com|Microsoft\.Insights/autoscaleSettings"
)
"""What stands in every file of a kind that is known here."""
_CLOSE: Final = 0.9
"""How alike a misspelt name is to the right one; Azure's other kinds are less."""
_OTHER_KINDS: Final = frozenset({
    "automlJob", "commandComponent", "pipelineComponent", "parallelComponent", "sparkComponent", "importJob", "kubernetesCompute",
    "pipelineComponentBatchDeployment", "pipelineJob", "sparkJob", "sweepJob", "virtualMachineCompute", "computeInstance", "workspace",
})  # fmt: skip
"""Of Azure's, beside those that are known here: none of them is a misspelling."""


def names_azure(text: str) -> bool:
    """Whether a file that can't be read means to be one of a kind that is known here."""
    return _NAMES_US.search(text) is not None


def unreadable(finding: Finding) -> Finding:
    """In place of what is wrong with a file of somebody else's."""
    message = f"nothing in it says that it is a file of Azure ML's, and as YAML it {finding.message}"
    return Finding(finding.file, finding.line, "", Rule.NOT_CHECKED, message)


def finding(document: Document) -> Finding:
    """Of a file whose kind is not known."""
    given = document.root.get("$schema")
    line = document.line(("$schema",))
    close = _meant(schema_name(given))
    if close:
        return Finding(
            document.path, line, "$schema", Rule.SCHEMA,
            f"is {shown(given)}. Azure does not look at it, and so the file was not checked. Did you mean {limits.schema(close)}?",
        )  # fmt: skip
    return Finding(document.path, line, "$schema", Rule.NOT_CHECKED, _why(given))


def _meant(name: str) -> str:
    known = [kind for kind in map(str, Kind) if kind != name]
    return (
        next(iter(get_close_matches(name, known, n=1, cutoff=_CLOSE)), "") if name not in _OTHER_KINDS else ""
    )


def _why(given: object) -> str:
    if given is None:
        return (
            "it is missing, and so nothing says that this is a file of Azure ML's (conda files, CI files and manifests have none). "
            f"Where it is one, write {ALLOWED}."
        )
    return f"{shown(given)} is no kind of file that is known here. Known: {ALLOWED}."
