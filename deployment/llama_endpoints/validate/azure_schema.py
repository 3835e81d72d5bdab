"""Findings of azure-ai-ml's own schemas, with lines and allowed values."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Final

from llama_endpoints.azure import schemas
from llama_endpoints.azure.schemas import Complaint
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import WITHOUT_LOADER
from llama_endpoints.validate.places import is_flat
from llama_endpoints.validate.spec_files import SpecFile
from llama_endpoints.validate.values import shown

_SET: Final = re.compile(r"passed is not in set \[(.*?)\]")
_TYPE: Final = re.compile(r"Not a valid (\w+)\.")
_WORDS: Final = {
    "integer": "an integer",
    "boolean": "true or false",
    "string": "a string",
    "mapping": "a mapping",
}


def findings(spec: SpecFile) -> Iterator[Finding]:
    """Yield the findings of a file whose kind has a loader."""
    if spec.kind in WITHOUT_LOADER:
        return
    kind = "batchDeployment" if is_flat(spec) else spec.kind
    for complaint in schemas.complaints(kind, spec.path):
        if complaint.unknown:
            yield spec.find(Rule.UNKNOWN_FIELD, complaint.place, _unknown(complaint))
        else:
            yield spec.find(Rule.AZURE, complaint.place, _message(spec, complaint))


def _unknown(complaint: Complaint) -> str:
    close = get_close_matches(str(complaint.place[-1]), complaint.known, n=1)
    nearest = f" Did you mean {close[0]}?" if close else ""
    return f"is not a field here.{nearest} Allowed: {', '.join(sorted(complaint.known)) or 'none'}."


def _message(spec: SpecFile, complaint: Complaint) -> str:
    value, message = spec.at(*complaint.place), complaint.message
    one_of, of_type = _SET.findall(message), _TYPE.fullmatch(message)
    found = "" if value is None else f", not {shown(value)}"
    if one_of:
        return f"must be one of {', '.join(one_of).replace(chr(39), '')}{found}."
    if of_type:
        return f"must be {_WORDS.get(of_type[1], of_type[1])}{found}."
    if message == "Missing data for required field.":
        return "is missing and required. Add it."
    if message == "Field may not be null.":
        return "has no value. Set one, or remove the field."
    return f"is not accepted by azure-ai-ml: {' '.join(message.split())}"
