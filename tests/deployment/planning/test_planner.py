"""Which machine a plan chooses, and why not another."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.cli import plan_report
from llama_endpoints.planning.planner import (
    MOST_AT_A_TIME,
    USUAL_TOKENS,
    PlanRequest,
    plan,
    plan_with_max_concurrency,
    to_dict,
)
from llama_endpoints.planning.sizing import (
    IMAGE_GIB,
    KvDtype,
    Precision,
    Runner,
    VllmSizingOptions,
    Workload,
    fit,
    spreads,
)
from llama_endpoints.planning.skus import SKUS, Cloud, Offer
from llama_serving.catalog import CATALOG, NANO, ModelVariant
from llama_serving.errors import SetupError
from tests.support.plans import (
    A100,
    CODE_7B,
    CODE_34B,
    CODE_70B,
    H100,
    LLAMA_13B,
    chosen,
    contexts,
    numbers,
    variants,
)


@given(variants, contexts, numbers, st.sampled_from(list(Offer)))
def test_what_is_chosen_is_offered_and_holds_it(
    variant: ModelVariant, context: int, number: int, offer: Offer
) -> None:
    found = plan(PlanRequest(variant, Workload(context, number), offer=offer))
    if found.chosen is None:
        return
    assert found.fits
    assert found.chosen.sku.retired is None
    assert found.chosen.sku.is_offered(offer)
    assert found.chosen.memory.total <= found.chosen.placement.limit_mib
    assert found.chosen.placement.gpus in spreads(variant.shape, 8, found.chosen.placement.runner)
    smaller = [one.sku for one in found.alternatives if one.fits and one.sku.gpus < found.chosen.sku.gpus]
    assert all(sku.retired or not sku.is_offered(offer) for sku in smaller)


def test_over_how_many_gpus_a_model_is_spread() -> None:
    """13B has 40 heads, and 13,824 columns between, which 5 does not divide: vLLM refuses that."""
    assert spreads(LLAMA_13B.shape, 8, Runner.VLLM) == [1, 2, 4, 8]
    assert spreads(CODE_70B.shape, 8, Runner.VLLM) == [1, 2, 4, 8]
    assert spreads(replace(LLAMA_13B.shape, ffn=13_825), 8, Runner.VLLM) == [1, 5]
    assert spreads(replace(LLAMA_13B.shape, kv_heads=10), 8, Runner.VLLM) == [1, 2]
    assert spreads(replace(LLAMA_13B.shape, heads=4), 8, Runner.VLLM) == [1, 2, 4]
    assert spreads(replace(NANO.shape, heads=15, kv_heads=15, ffn=15, vocab=60), 8, Runner.VLLM) == [1]  # 64
    assert spreads(CODE_7B.shape, 8, Runner.VLLM, 1, Precision.INT4) == [
        1,
        2,
    ]  # 11,008 columns are 86 groups of 128
    assert spreads(CODE_7B.shape, 8, Runner.VLLM, 1, Precision.INT8) == [1, 2, 4, 8]
    assert spreads(LLAMA_13B.shape, 8, Runner.PIPELINE) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_v100_and_t4_have_no_bf16_and_v100_is_not_chosen() -> None:
    for name in ("Standard_NC6s_v3", "Standard_NC4as_T4_v3"):
        reasons = fit(CODE_7B, Workload(512), Precision.BF16, SKUS[name], Runner.PIPELINE).reasons
        assert "does not compute in bf16" in reasons[0]
        assert fit(CODE_7B, Workload(512), Precision.FP16, SKUS[name], Runner.PIPELINE).fits
    found = plan(PlanRequest(CODE_7B, Workload(12_288), Precision.INT4))
    assert chosen(found).sku.name == "Standard_NC4as_T4_v3"
    assert found.quota_cores == 8  # one instance and a fifth, in whole ones
    assert all(sku.retired for name, sku in SKUS.items() if "s_v3" in name and "T4" not in name)
    assert plan(PlanRequest(CODE_7B, Workload(12_288), Precision.INT4, instances=10)).quota_cores == 12 * 4
    assert plan(PlanRequest(CODE_7B, Workload(12_288), Precision.INT4, offer=Offer.BATCH)).quota_cores == 4


def test_a_v100_is_too_old_for_the_vllm_of_the_image() -> None:
    """Its wheels are built for CUDA 13; the sources would take it. `auto` is the pipeline there."""
    v100 = SKUS["Standard_NC6s_v3"]
    (reason,) = fit(CODE_7B, Workload(256), Precision.FP16, v100, Runner.VLLM).reasons
    assert reason == (
        "V100 16 GB PCIe has compute capability 7.0, but vLLM's wheels for CUDA 13 need 7.5: use the engine pipeline, in fp16"
    )
    assert fit(CODE_7B, Workload(256), Precision.FP16, v100).placement.runner is Runner.PIPELINE
    assert "too old for vLLM" in [
        shortfall.short for shortfall in fit(CODE_7B, Workload(256), Precision.INT4, v100).shortfalls
    ]


def test_a_t4_with_ecc_is_too_small_for_7b_in_16_bits() -> None:
    t4 = SKUS["Standard_NC4as_T4_v3"]
    assert not fit(CODE_7B, Workload(2048), Precision.FP16, t4).fits
    assert not fit(CODE_7B, Workload(2048), Precision.FP16, t4, Runner.PIPELINE).fits
    found = plan(PlanRequest(CODE_7B, Workload(2048), Precision.FP16))
    assert chosen(found).sku.name == "Standard_NV36ads_A10_v5"


@pytest.mark.parametrize(
    ("name", "precision", "size"),
    [
        ("CodeLlama-7b-hf", Precision.INT4, "Standard_NV12ads_A10_v5"),
        ("CodeLlama-7b-hf", Precision.INT8, "Standard_NV18ads_A10_v5"),
        ("CodeLlama-13b-hf", Precision.INT4, "Standard_NC4as_T4_v3"),
        ("CodeLlama-34b-hf", Precision.INT4, "Standard_NV36ads_A10_v5"),
        ("CodeLlama-34b-hf", Precision.INT8, "Standard_NC24ads_A100_v4"),
        ("CodeLlama-70b-hf", Precision.INT4, "Standard_NC24ads_A100_v4"),
        ("CodeLlama-70b-hf", Precision.FP8, "Standard_NC40ads_H100_v5"),
    ],
)
def test_a_precision_that_saves_machines(name: str, precision: Precision, size: str) -> None:
    found = plan_with_max_concurrency(PlanRequest(CATALOG[f"codellama/{name}"], Workload(4096), precision))
    assert chosen(found).sku.name == size
    assert chosen(found).placement.gpus == 1
    assert chosen(found).placement.runner is Runner.VLLM


def test_34b_in_int4_fits_one_a100_of_40_gb() -> None:
    found = fit(CODE_34B, Workload(16_384), Precision.INT4, SKUS["Standard_ND96asr_v4"])
    assert (found.fits, found.placement.gpus) == (True, 1)


def test_a_step_of_vllm_has_a_token_of_each_sequence() -> None:
    few = VllmSizingOptions(prefill_tokens=64)
    found = plan_with_max_concurrency(PlanRequest(CODE_7B, Workload(4096, usual=256), sku=H100, options=few))
    assert found.request.workload.concurrency == 64
    with pytest.raises(
        SetupError, match="65 sequences need a prefill budget of at least as many tokens, not 64"
    ):
        plan(PlanRequest(CODE_7B, Workload(4096, 65), sku=H100, options=few))


def test_a_cache_in_fp8_needs_a_gpu_that_has_it_and_holds_twice_as_many() -> None:
    fp8 = VllmSizingOptions(kv_dtype=KvDtype.FP8)
    (shortfall,) = fit(CODE_7B, Workload(2048), Precision.BF16, A100, options=fp8).shortfalls
    assert shortfall.short == "no fp8 cache"
    assert "fp8 cache needs Ada or Hopper" in shortfall.sentence
    numbers = [
        plan_with_max_concurrency(
            PlanRequest(CODE_7B, Workload(4096), sku=H100, options=options)
        ).request.workload.concurrency
        for options in (VllmSizingOptions(), fp8)
    ]
    assert numbers[1] in (2 * numbers[0], 2 * numbers[0] + 1)


def test_weights_in_fp8_are_widened_where_the_gpu_has_none() -> None:
    told = plan_report.of(plan(PlanRequest(CODE_7B, Workload(2048), Precision.FP8, sku=A100)))
    assert "Warning: A100 80 GB PCIe has no fp8; vLLM widens the weights." in told
    assert "Warning" not in plan_report.of(plan(PlanRequest(CODE_7B, Workload(2048), Precision.FP8, sku=H100)))


def test_a_part_of_a_gpu_holds_a_quantized_model() -> None:
    assert (
        chosen(plan(PlanRequest(CODE_7B, Workload(2048), Precision.INT8))).sku.name == "Standard_NV18ads_A10_v5"
    )


@pytest.mark.parametrize(
    ("variant", "size", "short"),
    [
        (CODE_34B, "Standard_NC24ads_A100_v4", "18.9 GiB of disk short"),
        (CODE_70B, "Standard_NC48ads_A100_v4", "20.5 GiB of disk short"),
    ],
)
def test_weights_and_image_must_fit_on_the_disk(variant: ModelVariant, size: str, short: str) -> None:
    shortfall = fit(variant, Workload(2048), Precision.BF16, SKUS[size]).shortfalls[-1]
    assert shortfall.short == short
    assert (
        f"an image of {IMAGE_GIB[Runner.VLLM]} GiB do not fit on its disk of {SKUS[size].disk_gib} GiB"
        in shortfall.sentence
    )
    assert fit(variant, Workload(2048), Precision.BF16, SKUS[size], own_disk=False).fits
    assert fit(variant, Workload(2048), Precision.BF16, replace(SKUS[size], disk_gib=None)).fits
    assert fit(variant, Workload(2048), Precision.INT8, SKUS[size]).fits


def test_a_cluster_of_one_s_own_has_disks_of_its_own() -> None:
    managed, batch, cluster = (
        chosen(plan(PlanRequest(CODE_34B, Workload(2048), offer=offer))).sku.name
        for offer in (Offer.MANAGED_ONLINE, Offer.BATCH, Offer.KUBERNETES)
    )
    assert (managed, batch, cluster) == (*["Standard_NC40ads_H100_v5"] * 2, "Standard_NC24ads_A100_v4")


def test_a_host_without_memory_loads_nothing() -> None:
    (reason,) = fit(CODE_7B, Workload(512), Precision.BF16, replace(A100, ram_gib=7)).reasons
    assert reason == "its 7 GiB of RAM are less than the 8 GiB that loading takes"
    assert fit(CODE_7B, Workload(512), Precision.BF16, replace(A100, ram_gib=8)).fits


def test_a_retired_machine_is_not_chosen_though_it_is_the_smallest() -> None:
    wanted = PlanRequest(CODE_7B, Workload(512), Precision.FP16)
    found = plan(wanted, skus=[SKUS["Standard_NC6s_v3"], A100])
    assert (chosen(found).sku, found.alternatives[0].sku.name, found.alternatives[0].fits) == (
        A100,
        "Standard_NC6s_v3",
        True,
    )
    asked = plan(replace(wanted, sku=SKUS["Standard_NC6s_v3"]))
    assert (chosen(asked).sku.name, asked.fits) == ("Standard_NC6s_v3", True)


def test_vllm_computes_on_every_gpu_in_every_way_of_use() -> None:
    two = SKUS["Standard_NV72ads_A10_v5"]
    spread = fit(LLAMA_13B, Workload(2048), Precision.BF16, two)
    assert (spread.fits, spread.placement.gpus, spread.placement.runner) == (True, 2, Runner.VLLM)
    for variant in (CODE_7B, CODE_70B):
        placed = [
            chosen(plan_with_max_concurrency(PlanRequest(variant, Workload(4096), offer=offer))).placement
            for offer in Offer
        ]
        assert {one.runner for one in placed} == {Runner.VLLM}
        assert {one.gpus for one in placed} == {2 if variant is CODE_70B else 1}
    asked = plan_with_max_concurrency(PlanRequest(CODE_7B, Workload(4096), runner=Runner.PIPELINE))
    assert (chosen(asked).placement.runner, asked.request.workload.concurrency) == (Runner.PIPELINE, 1)


def test_vllm_is_given_as_many_sequences_as_the_same_gpus_hold() -> None:
    long, short = (
        plan_with_max_concurrency(PlanRequest(CODE_70B, Workload(context))) for context in (16_384, 2048)
    )
    assert long.request.workload.concurrency == short.request.workload.concurrency == 62
    assert (long.request.workload.length, short.request.workload.usual) == (USUAL_TOKENS, USUAL_TOKENS)
    more = replace(long.request, workload=replace(long.request.workload, concurrency=63))
    assert not plan(more).fits
    four = SKUS["Standard_NC96ads_A100_v4"]
    assert plan_with_max_concurrency(PlanRequest(CODE_70B, Workload(4096), sku=four)).spread == 2, (
        "not the machine's other GPUs"
    )
    assert (
        plan_with_max_concurrency(PlanRequest(CODE_7B, Workload(16))).request.workload.concurrency
        == MOST_AT_A_TIME
    )
    long_ones = plan_with_max_concurrency(PlanRequest(CODE_7B, Workload(16_384, usual=16_384)))
    assert long_ones.request.workload.concurrency == 7
    assert plan_with_max_concurrency(PlanRequest(CODE_70B, Workload(100_000), cloud=Cloud.AWS)).chosen is None


def test_each_of_vllm_s_sequences_has_an_answer_in_time() -> None:
    """A slow memory: 256 steps, each reading the weights and all caches, are to end in 178 s, behind all their prompts."""
    h100 = SKUS["Standard_NC80adis_H100_v5"]
    slow = replace(h100, gpu=replace(h100.gpu, bandwidth_gb_s=160))
    found = plan_with_max_concurrency(PlanRequest(CODE_70B, Workload(4096), sku=slow), skus=[slow])
    number = found.request.workload.concurrency
    assert 1 < number < 62
    workload = replace(found.request.workload, concurrency=number + 1)
    more = plan(replace(found.request, workload=workload), skus=[slow])
    assert more.fits
    assert more.longest_answer < 256 <= found.longest_answer


def test_h200_is_not_offered_for_managed_endpoints() -> None:
    workload = Workload(100_000, 2)
    assert chosen(plan(PlanRequest(CODE_70B, workload, offer=Offer.BATCH))).sku.is_offered(Offer.BATCH)
    assert not SKUS["Standard_ND96isr_H200_v5"].is_offered(Offer.MANAGED_ONLINE)
    assert not SKUS["Standard_ND96amsr_A100_v4"].is_offered(Offer.BATCH)  # nobody says so


def test_nothing_fits() -> None:
    found = plan(PlanRequest(CODE_70B, Workload(100_000, 64)))
    assert (found.chosen, found.fits, found.quota_cores, found.longest_answer) == (None, False, 0, 0)
    told = to_dict(found)
    assert (told["sku"], told["gpus"], told["fits"], told["memory_mib"]) == (None, 0, False, None)
    assert len(told["alternatives"]) == len([sku for sku in SKUS.values() if sku.cloud is Cloud.AZURE])
