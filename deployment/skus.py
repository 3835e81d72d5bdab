"""Machines with GPUs: one frozen row each, with the source of each fact. Nothing is read off a name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from llama_serving.catalog import Fact


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
        retired: when, where it is gone or will be.
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


_T4: Final = Gpu("T4", 15_360, 320, 65, bf16=False, source="NVIDIA T4 datasheet")
_A10: Final = Gpu("A10", 23_028, 600, 125, bf16=True, source="NVIDIA A10 datasheet")
_V100_16: Final = Gpu("V100 16 GB", 16_384, 900, 112, bf16=False, source="NVIDIA V100 datasheet")
_V100_32: Final = Gpu("V100 32 GB", 32_768, 900, 125, bf16=False, source="NVIDIA V100 datasheet")
_A100_40: Final = Gpu("A100 40 GB", 40_960, 1_555, 312, bf16=True, source="NVIDIA A100 datasheet")
_A100_80: Final = Gpu("A100 80 GB PCIe", 81_920, 1_935, 312, bf16=True, source="NVIDIA A100 datasheet")
_A100_80_SXM: Final = Gpu("A100 80 GB", 81_920, 2_039, 312, bf16=True, source="NVIDIA A100 datasheet")
_H100_NVL: Final = Gpu("H100 NVL", 95_830, 3_900, 835, bf16=True, source="NVIDIA H100 datasheet")
_H100: Final = Gpu("H100", 81_559, 3_350, 989, bf16=True, source="NVIDIA H100 datasheet")
_H200: Final = Gpu("H200", 143_771, 4_800, 989, bf16=True, source="NVIDIA H200 datasheet")


def _azure(
    size: str, gpu: Gpu, gpus: int, cores: int, family: str, *, retired: str | None = None, reserve: bool = True
) -> Sku:
    offered = MappingProxyType({offer: Fact(True, "to be checked") for offer in Offer})
    gone = Fact(retired, "Azure's retirement notices") if retired else None
    return Sku(f"Standard_{size}", Cloud.AZURE, gpu, gpus, cores, family, offered, gone, reserve)


SKUS: Final[Mapping[str, Sku]] = MappingProxyType({
    sku.name: sku
    for sku in (
        _azure("NC4as_T4_v3", _T4, 1, 4, "standardNCASv3_T4Family"),
        _azure("NC8as_T4_v3", _T4, 1, 8, "standardNCASv3_T4Family"),
        _azure("NC16as_T4_v3", _T4, 1, 16, "standardNCASv3_T4Family"),
        _azure("NC64as_T4_v3", _T4, 4, 64, "standardNCASv3_T4Family"),
        _azure("NV36ads_A10_v5", _A10, 1, 36, "standardNVADSA10v5Family"),
        _azure("NV72ads_A10_v5", _A10, 2, 72, "standardNVADSA10v5Family"),
        _azure("NC24ads_A100_v4", _A100_80, 1, 24, "standardNCADSA100v4Family", reserve=False),
        _azure("NC48ads_A100_v4", _A100_80, 2, 48, "standardNCADSA100v4Family", reserve=False),
        _azure("NC96ads_A100_v4", _A100_80, 4, 96, "standardNCADSA100v4Family", reserve=False),
        _azure("ND96asr_v4", _A100_40, 8, 96, "standardNDASv4_A100Family", reserve=False),
        _azure("ND96amsr_A100_v4", _A100_80_SXM, 8, 96, "standardNDAMSv4_A100Family", reserve=False),
        _azure("NC40ads_H100_v5", _H100_NVL, 1, 40, "standardNCADSH100v5Family", reserve=False),
        _azure("NC80adis_H100_v5", _H100_NVL, 2, 80, "standardNCADSH100v5Family", reserve=False),
        _azure("ND96isr_H100_v5", _H100, 8, 96, "standardNDSH100v5Family", reserve=False),
        _azure("ND96isr_H200_v5", _H200, 8, 96, "standardNDISRH200V5Family", reserve=False),
        _azure("NC6s_v3", _V100_16, 1, 6, "standardNCSv3Family", retired="2025-09-30"),
        _azure("NC12s_v3", _V100_16, 2, 12, "standardNCSv3Family", retired="2025-09-30"),
        _azure("NC24s_v3", _V100_16, 4, 24, "standardNCSv3Family", retired="2025-09-30"),
        _azure("ND40rs_v2", _V100_32, 8, 40, "standardNDSv2Family", retired="2025-09-30"),
        Sku("p3.2xlarge", Cloud.AWS, _V100_16, 1, 8),
        Sku("p3.8xlarge", Cloud.AWS, _V100_16, 4, 32),
        Sku("p3.16xlarge", Cloud.AWS, _V100_16, 8, 64),
        Sku("V100-32G", Cloud.PAPERSPACE, _V100_32, 1, 8),
        Sku("A100-80G", Cloud.PAPERSPACE, _A100_80_SXM, 1, 12),
    )
})  # fmt: skip
