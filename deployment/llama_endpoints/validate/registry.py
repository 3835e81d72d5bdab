"""Which model of our catalog one of Azure's registries means by a name: their own names, without `-hf` or with it."""

import re
from collections.abc import Mapping
from typing import Final

from llama_serving.catalog import CATALOG, ModelVariant

_MODEL: Final = re.compile(r"azureml://registries/([^/]+)/models/([^/]+)(?:/.*)?")
_REGISTRIES: Final = frozenset({"azureml", "azureml-meta", "huggingface"})
"""Microsoft's, in which a name is the same model for everybody."""


def _key(name: str) -> str:
    return name.lower().removesuffix("-hf")


_BY_NAME: Final[Mapping[str, ModelVariant]] = {
    key: variant
    for name, variant in CATALOG.items()
    if "/" in name
    for key in (_key(name.partition("/")[2]), _key(name.replace("/", "-")))
}
"""As Meta's registry has them, and as Hugging Face's does, with the owner in front."""


def variant_in_registry(reference: object) -> ModelVariant | None:
    """The row of the catalog; None for all other models and registries."""
    match = _MODEL.fullmatch(reference) if isinstance(reference, str) else None
    return _BY_NAME.get(_key(match[2])) if match and match[1].lower() in _REGISTRIES else None
