"""The places of fields in a deployment's file."""

from typing import Final

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.kinds import SpecKind
from llama_endpoints.validate.spec_files import SpecFile

PROBES: Final = ("liveness_probe", "readiness_probe")


def is_flat(spec: SpecFile) -> bool:
    """Whether a batch deployment has Azure's older form: no `type`, and the fields of `settings` at the root."""
    return spec.kind is SpecKind.BATCH_DEPLOYMENT and spec.at("type") is None and spec.at("settings") is None


def placed(spec: SpecFile, place: Place) -> Place:
    """Return the place of a field of `settings` in a file."""
    return place[1:] if place[0] == "settings" and is_flat(spec) else place
