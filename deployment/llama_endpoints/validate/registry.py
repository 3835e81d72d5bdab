"""Map models of public Azure registries to catalog rows: by the registries' names, with or without `-hf`."""

import re
from collections.abc import Mapping
from typing import Final

from llama_serving.catalog import CATALOG, ModelVariant

_MODEL: Final = re.compile(r"azureml://registries/([^/]+)/models/([^/]+)(?:/.*)?")
_REGISTRIES: Final = frozenset({"azureml", "azureml-meta", "huggingface"})
"""Microsoft's registries, in which a name means the same model for everybody."""


def _key(name: str) -> str:
    return name.lower().removesuffix("-hf")


_BY_NAME: Final[Mapping[str, ModelVariant]] = {
    key: variant
    for name, variant in CATALOG.items()
    if "/" in name
    for key in (_key(name.partition("/")[2]), _key(name.replace("/", "-")))
}
"""Names as in Meta's registry, and as in Hugging Face's, prefixed with the owner."""


def variant_in_registry(reference: object) -> ModelVariant | None:
    """Return the catalog row of a registry reference; None for other models and registries."""
    match = _MODEL.fullmatch(reference) if isinstance(reference, str) else None
    return _BY_NAME.get(_key(match[2])) if match and match[1].lower() in _REGISTRIES else None
