"""Machines with GPUs, one row each, with the source of each fact. Nothing is derived from names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from llama_serving.catalog import Fact
from llama_serving.errors import SetupError


class Cloud(StrEnum):
    """Who offers the machine."""

    AZURE = "azure"
    AWS = "aws"
    PAPERSPACE = "paperspace"


class Offer(StrEnum):
    """A use of a machine size in Azure ML."""

    MANAGED_ONLINE = "managed_online"
    BATCH = "batch"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: the manufacturer's name.
        memory_mib: total memory, as nvidia-smi shows it.
        bandwidth_gb_s: memory bandwidth, 10^9 bytes a second.
        tflops: dense, in 16 bits, 10^12 operations a second.
        capability: the compute capability, times ten (NVIDIA's list of CUDA GPUs): 75 is Turing, 80 Ampere, 90 Hopper.
        source: source of the other figures.
    """

    name: str
    memory_mib: int
    bandwidth_gb_s: int
    tflops: int
    capability: int
    source: str

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16, from 8.0 on (vLLM 0.32, platforms/cuda.py, supported_dtypes)."""
        return self.capability >= 80

    @property
    def fp8(self) -> bool:
        """Whether it computes in 8-bit floats, from 8.9 on: Ada and Hopper (vLLM 0.32, platforms/cuda.py, supports_fp8)."""
        return self.capability >= 89


@dataclass(frozen=True, slots=True)
class Sku:
    """A machine size.

    Attributes:
        name: as in Azure's `instance_type` and `size`, or the other cloud's name.
        gpus: number of GPUs.
        cores: virtual cores, the unit of quota.
        ram_gib: host memory.
        disk_gib: the machine's own disk; None if disks are rented separately.
        source: source of GPUs, cores, RAM and disk.
        family: name of the quota, as in Azure ML's list of sizes or Azure's virtual machines; empty if there is none.
        offered: known uses; other uses are unknown.
        retired: since or from when, if it is retired or will be.
        reserve: whether managed endpoints reserve 20 % more quota for upgrades.
    """

    name: str
    cloud: Cloud
    gpu: Gpu
    gpus: int
    cores: int
    ram_gib: int
    disk_gib: int | None
    source: str
    family: str = ""
    offered: Mapping[Offer, Fact[bool]] = field(default_factory=lambda: MappingProxyType({}))
    retired: Fact[str] | None = None
    reserve: bool = True

    def is_offered(self, offer: Offer) -> bool:
        """Whether it is known to be offered."""
        return offer in self.offered and self.offered[offer].value

    @property
    def memory_mib(self) -> int:
        """Memory of all GPUs."""
        return self.gpus * self.gpu.memory_mib


_SMI: Final = "memory as nvidia-smi shows it on such machines"
_SLICE: Final = "NVIDIA's A10 datasheet, that part of it; memory as nvidia-smi shows it"
_T4: Final = Gpu(
    "T4", 15_360, 300, 65, capability=75, source=f"NVIDIA's T4 datasheet; {_SMI} with ECC (without: 16,384)"
)
_A10: Final = Gpu("A10", 24_512, 600, 125, capability=86, source=f"NVIDIA's A10 datasheet; {_SMI} (A10-24Q)")
_A10_HALF: Final = Gpu("half an A10", 12_288, 300, 62, capability=86, source=f"{_SLICE} (A10-12Q)")
_A10_THIRD: Final = Gpu("a third of an A10", 8_192, 200, 41, capability=86, source=f"{_SLICE} (A10-8Q)")
_A10_SIXTH: Final = Gpu("a sixth of an A10", 4_096, 100, 20, capability=86, source=f"{_SLICE} (A10-4Q)")
_V100: Final = Gpu(
    "V100 16 GB PCIe", 16_384, 900, 112, capability=70, source=f"NVIDIA's V100 datasheet; {_SMI}"
)
_V100_SXM: Final = Gpu("V100 16 GB", 16_384, 900, 125, capability=70, source=f"NVIDIA's V100 datasheet; {_SMI}")
_V100_32: Final = Gpu("V100 32 GB", 32_768, 900, 125, capability=70, source=f"NVIDIA's V100 datasheet; {_SMI}")
_A100_40: Final = Gpu(
    "A100 40 GB", 40_960, 1_555, 312, capability=80, source=f"NVIDIA's A100 datasheet; {_SMI}"
)
_A100_80: Final = Gpu(
    "A100 80 GB PCIe", 81_920, 1_935, 312, capability=80, source=f"NVIDIA's A100 datasheet; {_SMI}"
)
_A100_80_SXM: Final = Gpu(
    "A100 80 GB", 81_920, 2_039, 312, capability=80, source=f"NVIDIA's A100 datasheet; {_SMI}"
)
_H100_NVL: Final = Gpu("H100 NVL", 95_830, 3_900, 835, capability=90, source=f"NVIDIA's H100 page; {_SMI}")
_H100: Final = Gpu("H100", 81_559, 3_350, 989, capability=90, source=f"NVIDIA's H100 white paper; {_SMI}")
_H200: Final = Gpu("H200", 143_771, 4_800, 989, capability=90, source=f"NVIDIA's H200 datasheet; {_SMI}")

_LIST: Final = "azure-ai-docs, reference-managed-online-endpoints-vm-sku-list.md of 2025-10-18"
_TARGETS: Final = "azure-ai-docs, concept-compute-target.md of 2025-11-13"
_SEEN: Final = "third party: the sizes that Azure ML listed in koreacentral on 2026-08-20"
_RETIREMENTS: Final = "azure-compute-docs, retirements-and-capacity-restrictions.md of 2026-09-24"

_ONLINE: Final = {Offer.MANAGED_ONLINE: Fact(value=True, source=_LIST)}
_NOT_ONLINE: Final = {Offer.MANAGED_ONLINE: Fact(value=False, source=f"not in {_LIST}")}
_BATCH: Final = {Offer.BATCH: Fact(value=True, source=_TARGETS)}
_BATCH_SEEN: Final = {Offer.BATCH: Fact(value=True, source=_SEEN)}
_CLUSTER: Final = {Offer.KUBERNETES: Fact(value=True, source="whatever nodes an attached cluster has")}


class _Size(NamedTuple):
    gpus: int
    cores: int
    ram_gib: int
    disk_gib: int


@dataclass(frozen=True, slots=True)
class _Series:
    """Azure sizes with the same GPU.

    Attributes:
        page: page of azure-compute-docs, below articles/virtual-machines/sizes/gpu-accelerated: cores, "Memory" and "Temp Disk Size".
    """

    family: str
    page: str
    gpu: Gpu
    sizes: Mapping[str, _Size]
    offered: Mapping[Offer, Fact[bool]]
    reserve: bool
    retired: Fact[str] | None = None

    def skus(self) -> Iterator[Sku]:
        for name, size in self.sizes.items():
            yield Sku(f"Standard_{name}", Cloud.AZURE, self.gpu, *size, f"azure-compute-docs, {self.page}.md", self.family,
                      MappingProxyType({**self.offered, **_CLUSTER}), self.retired, self.reserve)  # fmt: skip


_A10_FAMILY: Final = "standardNVADSA10v5Family"
_H100_FAMILY: Final = "standardNDv5H100Family"

_SERIES: Final = (
    _Series("standard NCASv3_T4 Family", "ncast4v3-series", _T4, {
        "NC4as_T4_v3": _Size(1, 4, 28, 176), "NC8as_T4_v3": _Size(1, 8, 56, 352),
        "NC16as_T4_v3": _Size(1, 16, 110, 352), "NC64as_T4_v3": _Size(4, 64, 440, 2816)}, _ONLINE | _BATCH, reserve=True),
    _Series(_A10_FAMILY, "nvadsa10v5-series", _A10_SIXTH, {"NV6ads_A10_v5": _Size(1, 6, 55, 180)}, _ONLINE | _BATCH_SEEN, reserve=True),
    _Series(_A10_FAMILY, "nvadsa10v5-series", _A10_THIRD, {"NV12ads_A10_v5": _Size(1, 12, 110, 360)}, _ONLINE | _BATCH_SEEN, reserve=True),
    _Series(_A10_FAMILY, "nvadsa10v5-series", _A10_HALF, {"NV18ads_A10_v5": _Size(1, 18, 220, 720)}, _ONLINE | _BATCH_SEEN, reserve=True),
    _Series(_A10_FAMILY, "nvadsa10v5-series", _A10, {
        "NV36ads_A10_v5": _Size(1, 36, 440, 1440), "NV36adms_A10_v5": _Size(1, 36, 880, 2880),
        "NV72ads_A10_v5": _Size(2, 72, 880, 2880)}, _ONLINE | _BATCH_SEEN, reserve=True),
    _Series("standardNCADSA100v4Family", "nca100v4-series", _A100_80, {
        "NC24ads_A100_v4": _Size(1, 24, 220, 64), "NC48ads_A100_v4": _Size(2, 48, 440, 128),
        "NC96ads_A100_v4": _Size(4, 96, 880, 256)}, _ONLINE | _BATCH_SEEN, reserve=False),
    _Series("standard NDASv4_A100 Family", "ndasra100v4-series", _A100_40, {"ND96asr_v4": _Size(8, 96, 900, 6000)},
            _ONLINE | _BATCH, reserve=False),
    _Series("standard NDAMSv4_A100Family", "ndma100v4-series", _A100_80_SXM, {"ND96amsr_A100_v4": _Size(8, 96, 1900, 6400)},
            _ONLINE, reserve=False),
    _Series("standardNCADSH100v5Family", "ncadsh100v5-series", _H100_NVL, {
        "NC40ads_H100_v5": _Size(1, 40, 320, 3576), "NC80adis_H100_v5": _Size(2, 80, 640, 7152)}, _ONLINE | _BATCH_SEEN, reserve=False),
    _Series(_H100_FAMILY, "ndh100v5-series", _H100, {"ND96isr_H100_v5": _Size(8, 96, 1900, 1024)}, _ONLINE | _BATCH, reserve=False),
    # In the list of sizes for endpoints. The page has only its twin with InfiniBand, whose RAM and disk these are.
    _Series(_H100_FAMILY, "ndh100v5-series", _H100, {"ND96is_H100_v5": _Size(8, 96, 1900, 1024)}, _ONLINE, reserve=False),
    _Series("standardNDISRH200V5Family", "nd-h200-v5-series", _H200, {"ND96isr_H200_v5": _Size(8, 96, 1850, 1024)},
            _NOT_ONLINE | _BATCH, reserve=False),
    # Machines of the old model cards: still in the list of sizes for endpoints, but retired or retiring.
    _Series("standardNCSv3Family", "ncv3-series", _V100, {
        "NC6s_v3": _Size(1, 6, 112, 736), "NC12s_v3": _Size(2, 12, 224, 1474), "NC24s_v3": _Size(4, 24, 448, 2948)},
            _ONLINE | _BATCH, reserve=True, retired=Fact("since 2025-09-30", _RETIREMENTS)),
    _Series("standardNDSv2Family", "ndv2-series", _V100_32, {"ND40rs_v2": _Size(8, 40, 672, 2948)}, _ONLINE | _BATCH, reserve=False,
            retired=Fact("retiring, no date given", f"the model cards' size of 2018; no row in {_RETIREMENTS}")),
)  # fmt: skip

_P3: Final = "AWS's instance types; disks are separate volumes"
_MACHINES: Final = "Paperspace's machine types; the disk size is configurable"

_ELSEWHERE: Final = (
    Sku("p3.2xlarge", Cloud.AWS, _V100_SXM, 1, 8, 61, None, _P3),
    Sku("p3.8xlarge", Cloud.AWS, _V100_SXM, 4, 32, 244, None, _P3),
    Sku("p3.16xlarge", Cloud.AWS, _V100_SXM, 8, 64, 488, None, _P3),
    Sku("V100-32G", Cloud.PAPERSPACE, _V100_32, 1, 8, 30, None, _MACHINES),
    Sku("A100", Cloud.PAPERSPACE, _A100_40, 1, 12, 90, None, _MACHINES),
    Sku("A100-80G", Cloud.PAPERSPACE, _A100_80_SXM, 1, 12, 90, None, _MACHINES),
)

SKUS: Final[Mapping[str, Sku]] = MappingProxyType(
    {sku.name: sku for sku in (*(sku for series in _SERIES for sku in series.skus()), *_ELSEWHERE)}
)
"""All machines, by name."""


def sku_of(name: str) -> Sku:
    """Return a machine's row. The prefix `Standard_` may be omitted; case is ignored.

    Raises:
        SetupError: the machine is unknown.
    """
    key = _key(name)
    known = {_key(sku.name): sku for sku in SKUS.values()}
    if key not in known:
        raise SetupError(f"Unknown machine {name!r}. {_nearest(key)}")
    return known[key]


def azure_size(name: str) -> Sku | None:
    """Return the row of a size as Azure's files name it, with its prefix, in any case; None if unknown."""
    sizes = {sku.name.lower(): sku for sku in SKUS.values() if sku.cloud is Cloud.AZURE}
    return sizes.get(name.lower())


def _key(name: str) -> str:
    return name.lower().removeprefix("standard_")


def _nearest(key: str) -> str:
    """Return suggestions among machines that are not retired."""
    alive = {_key(sku.name): sku.name for sku in SKUS.values() if sku.retired is None}
    near = [known for known in alive if key and key in known] or get_close_matches(key, alive, n=3)
    if not near:
        return f"Known: {', '.join(alive.values())}."
    return f"The closest: {', '.join(alive[known] for known in near)}."
