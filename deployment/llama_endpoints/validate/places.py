"""Where things stand in a deployment's file."""

from typing import Final

from llama_endpoints.validate.document import Place
from llama_endpoints.validate.kinds import Kind
from llama_endpoints.validate.spec_files import Spec

PROBES: Final = ("liveness_probe", "readiness_probe")


def is_flat(spec: Spec) -> bool:
    """Whether a batch deployment is written in Azure's older form: without `type`, and what is in `settings` beside the rest."""
    return spec.kind is Kind.BATCH_DEPLOYMENT and spec.at("type") is None and spec.at("settings") is None


def placed(spec: Spec, place: Place) -> Place:
    """Where something of `settings` stands in a file."""
    return place[1:] if place[0] == "settings" and is_flat(spec) else place
