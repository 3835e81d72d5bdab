"""Machines with GPUs: one frozen row each, with the source of each fact. Nothing is read off a name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from llama_serving.catalog import Fact
from llama_serving.errors import SetupError

_PREFIX: Final = "standard_"


class Cloud(StrEnum):
    """Who rents the machine out."""

    AZURE = "azure"
    AWS = "aws"
    PAPERSPACE = "paperspace"


class Offer(StrEnum):
    """What Azure ML lets a size be used for."""

    MANAGED_ONLINE = "managed_online"
    BATCH = "batch"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: the maker's.
        memory_mib: all of it, as nvidia-smi shows it.
        bandwidth_gb_s: of that memory, 10^9 bytes a second.
        tflops: dense, in 16 bits, 10^12 operations a second.
        bf16: whether it computes in bfloat16.
        source: of these figures.
    """

    name: str
    memory_mib: int
    bandwidth_gb_s: int
    tflops: int
    bf16: bool
    source: str


@dataclass(frozen=True, slots=True)
class Sku:
    """One size of machine.

    Attributes:
        name: as Azure's `instance_type` and `size` have it, or the other cloud's own.
        gpus: how many it has.
        cores: virtual ones; quota is counted in them.
        family: the quota's name; empty where nobody counts.
        offered: for what; a use that is not there is not known.
        retired: since or from when, where it is gone or will be.
        reserve: whether managed endpoints set aside a fifth more of the quota, for upgrades.
    """

    name: str
    cloud: Cloud
    gpu: Gpu
    gpus: int
    cores: int
    family: str = ""
    offered: Mapping[Offer, Fact[bool]] = field(default_factory=lambda: MappingProxyType({}))
    retired: Fact[str] | None = None
    reserve: bool = True

    def is_offered(self, offer: Offer) -> bool:
        """Whether it is known to be."""
        return offer in self.offered and self.offered[offer].value

    @property
    def memory_mib(self) -> int:
        """Of all GPUs."""
        return self.gpus * self.gpu.memory_mib


_SMI: Final = "memory as nvidia-smi shows it on such machines"
_T4: Final = Gpu("T4", 16_384, 300, 65, bf16=False, source=f"NVIDIA's T4 datasheet; {_SMI}")
_A10: Final = Gpu("A10", 24_512, 600, 125, bf16=True, source=f"NVIDIA's A10 datasheet; {_SMI} (A10-24Q)")
_V100_16: Final = Gpu("V100 16 GB", 16_384, 900, 112, bf16=False, source=f"NVIDIA's V100 datasheet; {_SMI}")
_V100_32: Final = Gpu("V100 32 GB", 32_768, 900, 125, bf16=False, source=f"NVIDIA's V100 datasheet; {_SMI}")
_A100_40: Final = Gpu("A100 40 GB", 40_960, 1_555, 312, bf16=True, source=f"NVIDIA's A100 datasheet; {_SMI}")
_A100_80: Final = Gpu(
    "A100 80 GB PCIe", 81_920, 1_935, 312, bf16=True, source=f"NVIDIA's A100 datasheet; {_SMI}"
)
_A100_80_SXM: Final = Gpu(
    "A100 80 GB", 81_920, 2_039, 312, bf16=True, source=f"NVIDIA's A100 datasheet; {_SMI}"
)
_H100_NVL: Final = Gpu("H100 NVL", 95_830, 3_900, 835, bf16=True, source=f"NVIDIA's H100 page; {_SMI}")
_H100: Final = Gpu("H100", 81_559, 3_350, 989, bf16=True, source=f"NVIDIA's H100 white paper; {_SMI}")
_H200: Final = Gpu("H200", 143_771, 4_800, 989, bf16=True, source=f"NVIDIA's H200 datasheet; {_SMI}")

_LIST: Final = "azure-ai-docs, reference-managed-online-endpoints-vm-sku-list.md of 2025-10-18"
_TARGETS: Final = "azure-ai-docs, concept-compute-target.md of 2025-11-13"
_SEEN: Final = "third party: the sizes that Azure ML listed in koreacentral on 2026-08-20"
_RETIREMENTS: Final = "azure-compute-docs, retirements-and-capacity-restrictions.md of 2026-09-24"

_ONLINE: Final = {Offer.MANAGED_ONLINE: Fact(value=True, source=_LIST)}
_NOT_ONLINE: Final = {Offer.MANAGED_ONLINE: Fact(value=False, source=f"not in {_LIST}")}
_BATCH: Final = {Offer.BATCH: Fact(value=True, source=_TARGETS)}
_BATCH_SEEN: Final = {Offer.BATCH: Fact(value=True, source=_SEEN)}
_CLUSTER: Final = {Offer.KUBERNETES: Fact(value=True, source="whatever nodes an attached cluster has")}


@dataclass(frozen=True, slots=True)
class _Series:
    """Sizes of Azure that differ in their number of GPUs and cores only; `sizes` has both of each."""

    family: str
    gpu: Gpu
    sizes: Mapping[str, tuple[int, int]]
    offered: Mapping[Offer, Fact[bool]]
    reserve: bool
    retired: Fact[str] | None = None

    def skus(self) -> Iterator[Sku]:
        for size, (gpus, cores) in self.sizes.items():
            yield Sku(f"Standard_{size}", Cloud.AZURE, self.gpu, gpus, cores, self.family,
                      MappingProxyType({**self.offered, **_CLUSTER}), self.retired, self.reserve)  # fmt: skip


_SERIES: Final = (
    _Series("standardNCASv3_T4Family", _T4, {"NC4as_T4_v3": (1, 4), "NC8as_T4_v3": (1, 8), "NC16as_T4_v3": (1, 16),
            "NC64as_T4_v3": (4, 64)}, _ONLINE | _BATCH, reserve=True),
    _Series("standardNVADSA10v5Family", _A10, {"NV36ads_A10_v5": (1, 36), "NV72ads_A10_v5": (2, 72)},
            _ONLINE | _BATCH_SEEN, reserve=True),
    _Series("standardNCADSA100v4Family", _A100_80, {"NC24ads_A100_v4": (1, 24), "NC48ads_A100_v4": (2, 48),
            "NC96ads_A100_v4": (4, 96)}, _ONLINE | _BATCH_SEEN, reserve=False),
    _Series("standardNDASv4_A100Family", _A100_40, {"ND96asr_v4": (8, 96)}, _ONLINE | _BATCH, reserve=False),
    _Series("standardNDAMSv4_A100Family", _A100_80_SXM, {"ND96amsr_A100_v4": (8, 96)}, _ONLINE, reserve=False),
    _Series("standardNCADSH100v5Family", _H100_NVL, {"NC40ads_H100_v5": (1, 40), "NC80adis_H100_v5": (2, 80)},
            _ONLINE | _BATCH_SEEN, reserve=False),
    _Series("standardNDv5H100Family", _H100, {"ND96isr_H100_v5": (8, 96)}, _ONLINE | _BATCH, reserve=False),
    _Series("standardNDISRH200V5Family", _H200, {"ND96isr_H200_v5": (8, 96)}, _NOT_ONLINE | _BATCH, reserve=False),
    # The old model cards' machines: still on the list of sizes for endpoints, and gone or going.
    _Series("standardNCSv3Family", _V100_16, {"NC6s_v3": (1, 6), "NC12s_v3": (2, 12), "NC24s_v3": (4, 24)},
            _ONLINE | _BATCH, reserve=True, retired=Fact("since 2025-09-30", _RETIREMENTS)),
    _Series("standardNDSv2Family", _V100_32, {"ND40rs_v2": (8, 40)}, _ONLINE | _BATCH, reserve=False,
            retired=Fact("retiring, no date given", f"the model cards' size of 2018; no row in {_RETIREMENTS}")),
)  # fmt: skip

_ELSEWHERE: Final = (
    Sku("p3.2xlarge", Cloud.AWS, _V100_16, 1, 8),
    Sku("p3.8xlarge", Cloud.AWS, _V100_16, 4, 32),
    Sku("p3.16xlarge", Cloud.AWS, _V100_16, 8, 64),
    Sku("V100-32G", Cloud.PAPERSPACE, _V100_32, 1, 8),
    Sku("A100", Cloud.PAPERSPACE, _A100_40, 1, 12),
    Sku("A100-80G", Cloud.PAPERSPACE, _A100_80_SXM, 1, 12),
)

SKUS: Final[Mapping[str, Sku]] = MappingProxyType(
    {sku.name: sku for sku in (*(sku for series in _SERIES for sku in series.skus()), *_ELSEWHERE)}
)
"""Azure's sizes: GPUs and cores are those of azure-compute-docs' pages of each series. AWS and Paperspace: their own pages."""


def sku_of(name: str) -> Sku:
    """The row of a machine; `NC24ads_A100_v4` will do for `Standard_NC24ads_A100_v4`.

    Raises:
        SetupError: there is none.
    """
    names = {known.lower().removeprefix(_PREFIX): known for known in SKUS}
    given = name.lower().removeprefix(_PREFIX)
    if given not in names:
        close = [names[one] for one in get_close_matches(given, names, n=3)]
        raise SetupError(f"{name} is no machine that is known here: {', '.join(close or SKUS)}.")
    return SKUS[names[given]]
