"""The machines: their names as people write them, and their facts once more, from the sources."""

from typing import Final

import pytest

from llama_endpoints.planning.skus import SKUS, Cloud, Offer, Sku, azure_size, sku_of
from llama_serving.errors import SetupError

A100: Final = SKUS["Standard_NC24ads_A100_v4"]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("STANDARD_NC24ADS_A100_V4", A100),
        ("nc24ads_a100_v4", A100),
        ("p3.2xlarge", SKUS["p3.2xlarge"]),
        ("Standard_NV36adms_A10_v5", SKUS["Standard_NV36adms_A10_v5"]),
    ],
)
def test_a_machine_s_name_in_any_case(name: str, size: Sku) -> None:
    assert sku_of(name) is size
    assert azure_size(name) is (size if name.lower().startswith("standard_") else None)


@pytest.mark.parametrize(
    ("name", "says", "never"),
    [
        ("Standard_NC24", "NC24ads_A100_v4", "NC24s_v3"),
        ("h100", "Standard_NC40ads_H100_v5, Standard_NC80adis_H100_v5", "A100"),
        ("p3.2xlarg", "The closest: p3.2xlarge", "ND40rs_v2"),
        ("", "Unknown machine ''. Known: ", "NC6s_v3"),
        ("zzzzzz", "Known: Standard_NC4as_T4_v3, ", "NC6s_v3"),
    ],
)
def test_a_name_that_is_none_is_answered_with_machines_that_can_be_had(
    name: str, says: str, never: str
) -> None:
    with pytest.raises(SetupError) as refusal:
        sku_of(name)
    assert says in str(refusal.value)
    assert never not in str(refusal.value)


LISTED: Final = {
    "NC24ADS_A100_V4": ("standardNCADSA100v4Family", 1, 24, False),
    "NC48ADS_A100_V4": ("standardNCADSA100v4Family", 2, 48, False),
    "NC96ADS_A100_V4": ("standardNCADSA100v4Family", 4, 96, False),
    "NC4AS_T4_V3": ("standard NCASv3_T4 Family", 1, 4, True),
    "NC8AS_T4_V3": ("standard NCASv3_T4 Family", 1, 8, True),
    "NC16AS_T4_V3": ("standard NCASv3_T4 Family", 1, 16, True),
    "NC64AS_T4_V3": ("standard NCASv3_T4 Family", 4, 64, True),
    "NC6S_V3": ("standardNCSv3Family", 1, 6, True),
    "NC12S_V3": ("standardNCSv3Family", 2, 12, True),
    "NC24S_V3": ("standardNCSv3Family", 4, 24, True),
    "NC40ADS_H100_V5": ("standardNCADSH100v5Family", 1, 40, False),
    "NC80ADIS_H100_V5": ("standardNCADSH100v5Family", 2, 80, False),
    "ND96AMSR_A100_V4": ("standard NDAMSv4_A100Family", 8, 96, False),
    "ND96ASR_V4": ("standard NDASv4_A100 Family", 8, 96, False),
    "ND40RS_V2": ("standardNDSv2Family", 8, 40, False),
    "ND96IS_H100_V5": ("standardNDv5H100Family", 8, 96, False),
    "ND96ISR_H100_V5": ("standardNDv5H100Family", 8, 96, False),
    "NV6ADS_A10_V5": ("standardNVADSA10v5Family", 1, 6, True),
    "NV12ADS_A10_V5": ("standardNVADSA10v5Family", 1, 12, True),
    "NV18ADS_A10_V5": ("standardNVADSA10v5Family", 1, 18, True),
    "NV36ADS_A10_V5": ("standardNVADSA10v5Family", 1, 36, True),
    "NV36ADMS_A10_V5": ("standardNVADSA10v5Family", 1, 36, True),
    "NV72ADS_A10_V5": ("standardNVADSA10v5Family", 2, 72, True),
}
"""Microsoft's list of sizes for managed endpoints (azure-ai-docs, reference-managed-online-endpoints-vm-sku-list.md): all with a
GPU of NVIDIA but NCv2, which is gone. Family, GPUs (parts of one count as one), cores, and whether a fifth more is reserved."""


def test_the_sizes_for_endpoints_are_those_of_microsoft_s_list() -> None:
    online = [sku for sku in SKUS.values() if sku.cloud is Cloud.AZURE and sku.is_offered(Offer.MANAGED_ONLINE)]
    ours = {
        sku.name.removeprefix("Standard_").upper(): (sku.family, sku.gpus, sku.cores, sku.reserve)
        for sku in online
    }
    assert ours == LISTED


GPUS: Final = {
    "T4": (15_360, 300, 65, False),
    "A10": (24_512, 600, 125, True),
    "half an A10": (12_288, 300, 62, True),
    "a third of an A10": (8_192, 200, 41, True),
    "a sixth of an A10": (4_096, 100, 20, True),
    "V100 16 GB PCIe": (16_384, 900, 112, False),
    "V100 16 GB": (16_384, 900, 125, False),
    "V100 32 GB": (32_768, 900, 125, False),
    "A100 40 GB": (40_960, 1_555, 312, True),
    "A100 80 GB PCIe": (81_920, 1_935, 312, True),
    "A100 80 GB": (81_920, 2_039, 312, True),
    "H100 NVL": (95_830, 3_900, 835, True),
    "H100": (81_559, 3_350, 989, True),
    "H200": (143_771, 4_800, 989, True),
}
"""MiB that nvidia-smi shows; GB/s, dense TFLOPS in 16 bits, and bf16 of NVIDIA's datasheets."""


def test_gpus() -> None:
    found = {sku.gpu.name: sku.gpu for sku in SKUS.values()}
    assert {
        name: (gpu.memory_mib, gpu.bandwidth_gb_s, gpu.tflops, gpu.bf16) for name, gpu in found.items()
    } == GPUS


OF_GPU: Final = {
    "T4": "NC4as_T4_v3 NC8as_T4_v3 NC16as_T4_v3 NC64as_T4_v3",
    "A10": "NV36ads_A10_v5 NV36adms_A10_v5 NV72ads_A10_v5",
    "half an A10": "NV18ads_A10_v5",
    "a third of an A10": "NV12ads_A10_v5",
    "a sixth of an A10": "NV6ads_A10_v5",
    "V100 16 GB PCIe": "NC6s_v3 NC12s_v3 NC24s_v3",
    "V100 16 GB": "p3.2xlarge p3.8xlarge p3.16xlarge",
    "V100 32 GB": "ND40rs_v2 V100-32G",
    "A100 40 GB": "ND96asr_v4 A100",
    "A100 80 GB PCIe": "NC24ads_A100_v4 NC48ads_A100_v4 NC96ads_A100_v4",
    "A100 80 GB": "ND96amsr_A100_v4 A100-80G",
    "H100 NVL": "NC40ads_H100_v5 NC80adis_H100_v5",
    "H100": "ND96isr_H100_v5 ND96is_H100_v5",
    "H200": "ND96isr_H200_v5",
}


def test_which_machine_has_which_gpu() -> None:
    found = {sku.name.removeprefix("Standard_"): sku.gpu.name for sku in SKUS.values()}
    assert found == {machine: gpu for gpu, machines in OF_GPU.items() for machine in machines.split()}


HOSTS: Final = {
    "NC4as_T4_v3": (28, 176), "NC8as_T4_v3": (56, 352), "NC16as_T4_v3": (110, 352), "NC64as_T4_v3": (440, 2816),
    "NV6ads_A10_v5": (55, 180), "NV12ads_A10_v5": (110, 360), "NV18ads_A10_v5": (220, 720), "NV36ads_A10_v5": (440, 1440),
    "NV36adms_A10_v5": (880, 2880), "NV72ads_A10_v5": (880, 2880), "NC24ads_A100_v4": (220, 64), "NC48ads_A100_v4": (440, 128),
    "NC96ads_A100_v4": (880, 256), "NC40ads_H100_v5": (320, 3576), "NC80adis_H100_v5": (640, 7152), "ND96asr_v4": (900, 6000),
    "ND96amsr_A100_v4": (1900, 6400), "ND96isr_H100_v5": (1900, 1024), "ND96is_H100_v5": (1900, 1024),
    "ND96isr_H200_v5": (1850, 1024), "NC6s_v3": (112, 736), "NC12s_v3": (224, 1474), "NC24s_v3": (448, 2948),
    "ND40rs_v2": (672, 2948), "p3.2xlarge": (61, None), "p3.8xlarge": (244, None), "p3.16xlarge": (488, None),
    "V100-32G": (30, None), "A100": (90, None), "A100-80G": (90, None),
}  # fmt: skip
"""GiB of RAM and of the disk that comes with a machine."""


def test_hosts() -> None:
    assert {sku.name.removeprefix("Standard_"): (sku.ram_gib, sku.disk_gib) for sku in SKUS.values()} == HOSTS


@pytest.mark.parametrize("sku", SKUS.values(), ids=SKUS)
def test_rows(sku: Sku) -> None:
    assert sku.source
    assert sku.gpu.source
    assert all(fact.source for fact in sku.offered.values())
    assert sku.retired is None or sku.retired.source
    assert (
        (sku.cloud is Cloud.AZURE) == sku.name.startswith("Standard_") == bool(sku.family) == bool(sku.offered)
    )
