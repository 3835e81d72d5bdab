"""Which sizes of Azure machines exist, for the series that are fully known. Nothing is said about other series.

The series DSv2, Dsv3, Dsv5, Dasv5, Esv3, Fs and Fsv2 were compared with the sizes that .NET Aspire lists for AKS (aspire.dev,
Aspire.Hosting.Azure.Kubernetes, generated from Azure's list). The others follow Azure's documentation pages. Sizes that Azure
adds to a series have to be added here.
"""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from llama_endpoints.planning.skus import SKUS, Cloud

_FORM: Final = re.compile(r"Standard_[A-Z]{1,4}\d+(?:-\d+)?[a-z]*(?:_[A-Za-z0-9]+)*", re.IGNORECASE)
_USUAL: Final = (2, 4, 8, 16, 32, 48, 64)
_LARGE: Final = (*_USUAL, 96)
_MEMORY: Final = (2, 4, 8, 16, 20, 32, 48, 64)
_SERIES: Final[Mapping[str, tuple[int, ...]]] = {
    **dict.fromkeys(("D{}_v2", "DS{}_v2"), (1, 2, 3, 4, 5, 11, 12, 13, 14, 15)),
    **dict.fromkeys(("D{}_v3", "D{}s_v3", "D{}_v4", "D{}s_v4", "D{}d_v4", "D{}ds_v4"), _USUAL),
    **dict.fromkeys(
        ("D{}a_v4", "D{}as_v4", "D{}_v5", "D{}s_v5", "D{}d_v5", "D{}ds_v5", "D{}as_v5", "D{}ads_v5"), _LARGE
    ),
    **dict.fromkeys(("E{}_v3", "E{}s_v3", "E{}_v4", "E{}s_v4", "E{}d_v4", "E{}ds_v4"), _MEMORY),
    **dict.fromkeys(("E{}a_v4", "E{}as_v4"), (*_MEMORY, 96)),
    "F{}s_v2": (2, 4, 8, 16, 32, 48, 64, 72),
    **dict.fromkeys(("F{}", "F{}s"), (1, 2, 4, 8, 16)),
    "FX{}mds": (4, 12, 24, 36, 48),
}
"""Series without GPUs, by the number in the name."""
_WITH_GPUS: Final = (
    "NC24rs_v3",
    "NV12s_v3",
    "NV24s_v3",
    "NV48s_v3",
    "NV4as_v4",
    "NV8as_v4",
    "NV16as_v4",
    "NV32as_v4",
)
"""GPU sizes without a row in the planner."""


def _names() -> Iterator[str]:
    yield from (f"Standard_{form.format(number)}" for form, numbers in _SERIES.items() for number in numbers)
    yield from (f"Standard_{name}" for name in _WITH_GPUS)
    yield from (sku.name for sku in SKUS.values() if sku.cloud is Cloud.AZURE)


KNOWN: Final[Mapping[str, str]] = {name.lower(): name for name in _names()}


def _series(name: str) -> str:
    """Return a size's series: `standard_ds33_v2` -> `standard_ds{}_v2`."""
    return re.sub(r"(?<=[a-z])\d+", "{}", name.lower(), count=1)


_WHOLE: Final = frozenset(map(_series, KNOWN))


def exists(name: str) -> bool | None:
    """Whether Azure has a size; None if unknown."""
    if name.lower() in KNOWN:
        return True
    if _FORM.fullmatch(name) is None:
        return False
    return False if _series(name) in _WHOLE else None


def nearest(name: str, alike: float = 0.6) -> list[str]:
    """Return the sizes with the most similar names."""
    return [KNOWN[close] for close in get_close_matches(name.lower(), KNOWN, n=3, cutoff=alike)]
